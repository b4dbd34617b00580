"""What each method, at its defaults, would make of the gradients of the sampled tokens, computed by its own loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from drpo_verl.losses import OBJECTIVES, Objective, TokenRatio, TrustRegion, token_loss
from drpo_verl.losses.partition import Divergence


@dataclass(frozen=True)
class Method:
    """A ``+method=`` group.

    Attributes:
        name: of the group.
        objective: its row of the table.
        region: its thresholds.
        top_k: the K of its divergence, for a Top-K method.
    """

    name: str
    objective: Objective
    region: TrustRegion
    top_k: int | None

    @property
    def thresholds(self) -> dict[str, float]:
        """Those of the region that mean something to it."""
        takes_delta = self.objective.enforcement.needs_threshold
        region = asdict(self.region)
        names = [*(("delta_low", "delta_high") if takes_delta else ()), "ratio_cap", "dual_clip"]
        if self.objective.enforcement.gated:
            names.append("region_delta")
        return {name: region[name] for name in names if region[name] is not None}


def methods() -> list[Method]:
    """Return the ``+method=`` groups with their defaults, in the order of the table of objectives.

    Without those that look beyond a token's own probabilities, at the rest of its response or the whole vocabulary.
    """
    from hydra import compose, initialize_config_dir
    from hydra.utils import instantiate
    from verl.workers.config import ActorConfig

    from drpo_verl.adapters.config import verl_region
    from drpo_verl.configuration import search_path

    search_path.register()
    ordered: list[tuple[int, Method]] = []
    with initialize_config_dir(str(search_path.config_dir()), version_base="1.3"):
        for name in search_path.methods():
            actor = compose(overrides=[f"+method={name}"]).actor_rollout_ref.actor
            settings = instantiate(actor.policy_loss)
            objective = settings.objective()
            if objective.scope is not None or objective.direction.needs_derivative:
                continue
            if objective.verl_loss:
                clips = {name: actor[name] for name in actor if str(name).startswith("clip_ratio")}
                region = verl_region(SimpleNamespace(**{"clip_ratio_c": ActorConfig.clip_ratio_c, **clips}))
            else:
                region = settings.region()
            position = list(OBJECTIVES).index(settings.loss_mode)
            ordered.append((position, Method(name, objective, region, settings.top_k)))
    return [method for _, method in sorted(ordered, key=lambda pair: pair[0])]


def effects(method: Method, log_mu: Tensor, log_pi: Tensor, partition: Partition) -> Iterator[dict[str, float]]:
    """Yield the effect of a method on tokens, were all advantages 1, and were all -1; see ``effect``.

    Args:
        method: with the thresholds of its group, or with others.
        log_mu: of the sampled tokens under the rollout engine, ``[N]`` fp32.
        log_pi: under the training engine.
        partition: their Top-K.
    """
    divergence = method.objective.geometry.divergence
    ratio = TokenRatio.of(log_pi, log_mu).ratio
    for advantage in (1.0, -1.0):
        policy = log_pi.clone().requires_grad_()
        loss = token_loss(
            method.objective,
            method.region,
            policy[None],
            log_mu[None],
            torch.full_like(log_mu, advantage)[None],
            torch.ones_like(log_mu)[None],
            # Before the first update, a recomputed pi_old is the training engine's own.
            log_anchor=log_pi[None] if method.objective.recomputed_anchor else None,
            partition_divergence=None if divergence is None else partition.divergence(divergence)[None],
        ).loss
        (gradient,) = torch.autograd.grad(loss.sum(), policy)
        yield effect(gradient / (-advantage * ratio))


def effect(weight: Tensor) -> dict[str, float]:
    """Return what weights w, ``[N]``, make of the tokens' gradients, -A r w grad log pi, and the mean and least w.

    Shares of the tokens: ``removed`` (w = 0, clipped or masked), ``attenuated`` (0 < w < 1; the cap on the ratio
    counts, too), ``corrected`` (w < 0, pushed back towards mu) and ``strengthened`` (w > 1).
    """
    shares = {
        "removed": weight == 0,
        "attenuated": (weight > 0) & (weight < 1),
        "corrected": weight < 0,
        "strengthened": weight > 1,
    }
    return {
        **{name: which.double().mean().item() for name, which in shares.items()},
        "weight_mean": weight.double().mean().item(),
        "weight_min": weight.min().item(),
    }


@dataclass(frozen=True)
class Partition:
    """The Top-K of each position under both engines, ``[N, K + 1]`` fp32.

    Attributes:
        log_mu: under the rollout engine; -inf for a token that sampling excludes.
        log_pi: under the training engine.
        listed: 1 for an entry, 0 for one that is none.
    """

    log_mu: Tensor
    log_pi: Tensor
    listed: Tensor

    def divergence(self, divergence: Divergence) -> Tensor:
        """D of each token, ``[N]``."""
        # As when it travels with a sample: no probability at all, without a NaN in 0 log 0.
        return divergence(self.log_mu.clamp(min=torch.finfo(torch.float16).min), self.log_pi, self.listed, None)


def measure(chosen: list[Method], log_mu: Tensor, log_pi: Tensor, partition: Partition) -> dict[str, dict[str, Any]]:
    """Return thresholds and effects of methods by their names; see ``effects`` for the other arguments."""
    result = {}
    for method in chosen:
        positive, negative = effects(method, log_mu, log_pi, partition)
        result[method.name] = {
            "thresholds": method.thresholds,
            "positive_advantage": positive,
            "negative_advantage": negative,
        }
    return result
