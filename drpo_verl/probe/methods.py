"""What each method, at its defaults, would make of the gradients of the sampled tokens, computed by its own loss."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from drpo_verl.losses import OBJECTIVES, Objective, TokenRatio, TrustRegion, token_loss
from drpo_verl.losses.partition import kullback_leibler_derivative


@dataclass(frozen=True)
class Method:
    """A ``+method=`` group.

    Attributes:
        name: of the group.
        objective: its row of the table.
        region: its thresholds.
        top_k: the K of its divergence, for a Top-K method.
        tail: what a predictive method assumes of the tokens beyond the Top-K (``losses.partition.TAILS``).
    """

    name: str
    objective: Objective
    region: TrustRegion
    top_k: int | None
    tail: str | None

    @property
    def thresholds(self) -> dict[str, float]:
        """Those of the region that mean something to it; of a prefix's budget as its settings name them."""
        takes_delta = self.objective.enforcement.needs_threshold
        region = asdict(self.region)
        names = [*(("delta_low", "delta_high") if takes_delta else ()), "ratio_cap", "dual_clip", "log_ratio_penalty"]
        if self.objective.enforcement.gated:
            names.append("region_delta")
        found = {name: region[name] for name in names if region[name] is not None}
        if self.region.prefix_budget is not None:
            budget = asdict(self.region.prefix_budget)
            budget["delta_b_quantile"] = budget.pop("quantile")
            found |= {name: value for name, value in budget.items() if value is not None}
        return found


def methods() -> list[Method]:
    """Return the ``+method=`` groups with their defaults, in the order of the table of objectives."""
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
            if objective.verl_loss:
                clips = {name: actor[name] for name in actor if str(name).startswith("clip_ratio")}
                region = verl_region(SimpleNamespace(**{"clip_ratio_c": ActorConfig.clip_ratio_c, **clips}))
            else:
                region = settings.region()
            position = list(OBJECTIVES).index(settings.loss_mode)
            ordered.append((position, Method(name, objective, region, settings.top_k, settings.tail)))
    return [method for _, method in sorted(ordered, key=lambda pair: pair[0])]


@dataclass(frozen=True)
class Partition:
    """The Top-K of each position under both engines, the sampled token first; each tensor ``[N, K + 1]`` fp32.

    Attributes:
        log_mu: under the rollout engine; -inf for a token that sampling excludes.
        log_pi: under the training engine.
        listed: 1 for an entry, 0 for one that is none.
        vocabulary: how many tokens there are.
    """

    log_mu: Tensor
    log_pi: Tensor
    listed: Tensor
    vocabulary: int

    def divergence(self, method: Method) -> Tensor | None:
        """D of each token, ``[N]``, for a Top-K method; None for another one."""
        divergence = method.objective.geometry.divergence
        return None if divergence is None else divergence(*self._given)

    def derivative(self, method: Method) -> Tensor | None:
        """The derivative of D along each token's update, ``[N]``, for a predictive method; None for another one."""
        if not method.objective.direction.needs_derivative:
            return None
        return kullback_leibler_derivative(*self._given, vocabulary=self.vocabulary, tail=str(method.tail))

    @property
    def _given(self) -> tuple[Tensor, Tensor, Tensor, None]:
        # As when it travels with a sample: no probability at all, without a NaN in 0 log 0.
        return self.log_mu.clamp(min=torch.finfo(torch.float16).min), self.log_pi, self.listed, None


@dataclass(frozen=True)
class Responses:
    """Sampled responses and their tokens, one response after the other: S of them, of N tokens in all.

    Attributes:
        log_mu: of the sampled tokens under the rollout engine, ``[N]`` fp32.
        log_pi: under the training engine.
        partition: their Top-K.
        lengths: tokens of each response, S of them; their sum is N.
    """

    log_mu: Tensor
    log_pi: Tensor
    partition: Partition
    lengths: list[int]

    def rows(self, of_tokens: Tensor) -> Tensor:
        """Values of the tokens, ``[N]``, one response in each row, ``[S, T]``, and 0 behind it."""
        return pad_sequence(list(of_tokens.split(self.lengths)), batch_first=True)


def effects(method: Method, responses: Responses) -> Iterator[dict[str, float]]:
    """Yield the effect of a method on tokens, were all advantages 1, and were all -1; see ``effect``.

    Args:
        method: with the thresholds of its group, or with others.
        responses: what was sampled. The scope of a prefix or of a sequence sees each of them whole.
    """
    mask = responses.rows(torch.ones_like(responses.log_mu))
    log_mu, log_pi = responses.rows(responses.log_mu), responses.rows(responses.log_pi)
    ratio = TokenRatio.of(log_pi, log_mu).ratio
    divergence, derivative = (
        None if of_tokens is None else responses.rows(of_tokens)
        for of_tokens in (responses.partition.divergence(method), responses.partition.derivative(method))
    )
    for advantage in (1.0, -1.0):
        policy = log_pi.clone().requires_grad_()
        loss = token_loss(
            method.objective,
            method.region,
            policy,
            log_mu,
            torch.full_like(log_mu, advantage),
            mask,
            # Before the first update, a recomputed pi_old is the training engine's own.
            log_anchor=log_pi if method.objective.recomputed_anchor else None,
            partition_divergence=divergence,
            partition_derivative=derivative,
        ).loss
        (gradient,) = torch.autograd.grad(loss.sum(), policy)
        yield effect((gradient / (-advantage * ratio))[mask.bool()])


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


def measure(chosen: list[Method], responses: Responses) -> dict[str, dict[str, Any]]:
    """Return thresholds and effects of methods by their names; see ``effects``."""
    result = {}
    for method in chosen:
        positive, negative = effects(method, responses)
        result[method.name] = {
            "thresholds": method.thresholds,
            "positive_advantage": positive,
            "negative_advantage": negative,
        }
    return result
