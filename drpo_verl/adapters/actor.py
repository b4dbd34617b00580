"""The actor's training worker: verl's own, with what the objectives need beside verl's arguments.

verl averages a loss's metrics over micro-batches and ranks without weights, and has no maximum over them. This
worker carries sums and extrema instead, and divides once, when a step's micro-batches, mini-batches and ranks
have come together. A step is what lies between two weight syncs, however many calls verl makes of it. The worker moves
an adaptive threshold after each call, and keeps it in the checkpoint.
"""

from __future__ import annotations

import inspect
import json
import os
from collections.abc import Awaitable, Callable
from functools import cached_property, wraps
from pathlib import Path
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils
from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker
from verl.workers.utils.losses import ppo_loss

from drpo_verl.adapters import anchor
from drpo_verl.adapters.actor_loss import STATISTICS, TrustRegionLoss
from drpo_verl.adapters.config import TrustRegionLossConfig
from drpo_verl.adapters.loss_scale import LossScale
from drpo_verl.adapters.worst_token import worst_over_ranks
from drpo_verl.losses import TokenStatistics, step_metrics
from drpo_verl.losses.adaptive import DeltaController
from drpo_verl.metrics.names import DELTA, DIVERGING, OUTSIDE
from drpo_verl.run_folder import worst_tokens
from drpo_verl.seams import expect, expect_parameters, warn

_STATE_FILE = "trust_region.json"


def _step_of(data: TensorDict) -> int | None:
    # Put there by verl's agent loop, the same for all samples of a step (asynchronously, at most that of the latest).
    if "global_steps" not in data:
        return None
    steps = data["global_steps"]
    return int(max(steps.tolist() if isinstance(steps, Tensor) else list(steps)))


class TrustRegionTrainingWorker(TrainingWorker):
    """verl's ``TrainingWorker`` for an actor; does nothing unless its policy loss is configured by ours."""

    _loss: TrustRegionLoss | None = None
    _since_sync: tuple[TokenStatistics, ...] = ()
    """At most two: of the first mini-batch after the weight sync, and of those that followed."""

    @cached_property
    def _loss_scale(self) -> LossScale:
        return LossScale()

    def on_weight_sync(self) -> None:
        """The rollout engine has got this policy's weights: what it samples from now on is not off-policy by an update.

        The synchronous trainer makes one call of ``train_mini_batch`` between two syncs, with all mini-batches; the
        separate asynchronous one makes a call for each.
        """
        self._since_sync = ()
        if self._loss is not None:
            self._loss.mini_batch = 0

    def set_loss_fn(self, loss_fn: Callable[..., Any]) -> None:
        """Set the loss function; ours in the place of verl's PPO loss, when the configured objective is one of ours."""
        self._loss = None
        settings = getattr(loss_fn, "keywords", {}).get("config")
        if isinstance(getattr(settings, "policy_loss", None), TrustRegionLossConfig):
            if getattr(loss_fn, "func", None) is ppo_loss:
                loss_fn = self._loss = TrustRegionLoss(settings, self.engine)
            else:
                warn(
                    f"verl's actor has the loss function {loss_fn!r}, and not ppo_loss, in whose place ours would be: "
                    "metrics of the trust region are means of micro-batch means; recomputed anchors, drpo_adaptive "
                    "and Top-K methods do not work."
                )
        super().set_loss_fn(loss_fn)

    def train_mini_batch(self, data: TensorDict) -> TensorDict | None:
        """Train on some or all mini-batches of a step, then turn what is known of the step by now into metrics."""
        if self._loss is not None and self._loss.objective.needs_top_k:
            # verl's switch for calling the loss with the logits; the driver sets it to what its own distillation needs.
            tensordict_utils.assign_non_tensor(data, distillation_use_topk=True)
        if self._loss is not None and self._loss.settings.bypass_mode and self._loss.objective.recomputed_anchor:
            anchor.recompute(self.engine, data, updates_since_sync=self._loss.mini_batch)
        output = super().train_mini_batch(data)
        merged = None
        if output is not None:
            metrics: dict[str, Any] = tensordict_utils.get(output, "metrics")
            metrics.update(self._loss_scale.take())
            if parts := metrics.pop(STATISTICS, None):
                merged = TokenStatistics.merge(parts)
                self._since_sync = tuple(TokenStatistics.by_drift([*self._since_sync, *parts]))
                assert self._loss is not None  # whose statistics they are
                # Where pi_old is recomputed, verl itself logs what has its names.
                of_step = step_metrics(self._since_sync, with_names_of_verl=self._loss.settings.bypass_mode)
                metrics.update({name: [value] for name, value in of_step.items()})
                if self._loss.controller is not None:
                    metrics[DELTA] = [self._loss.controller.delta]
        self._adapt(merged)
        if self._loss is not None and worst_tokens.PATH_VARIABLE in os.environ:
            worst = self._loss.worst.take(self.model_config.tokenizer, _step_of(data))
            worst = worst_over_ranks(worst, self.engine.get_data_parallel_group())
            # The first rank that the loss is called on: with pipeline parallelism, one of the last stage.
            first = self.engine.get_data_parallel_rank() == 0 and self.engine.is_mp_src_rank_with_outputs()
            if worst is not None and first:
                worst_tokens.append(worst, Path(os.environ[worst_tokens.PATH_VARIABLE]))
        return output

    def train_batch(self, data: TensorDict) -> TensorDict | None:
        """Train on one mini-batch."""
        if self._loss is not None:
            self._loss.mini_batch += 1
        with self._loss_scale.watch(self.engine):
            return super().train_batch(data)

    def _adapt(self, step: TokenStatistics | None) -> None:
        if self._loss is None or self._loss.controller is None:
            return
        if step is not None:
            self._loss.controller.update(outside=step.sums[OUTSIDE], diverging=step.sums[DIVERGING])
        # Ranks of one model replica other than the first (tensor, pipeline or sequence parallel) have no metrics.
        self._agree(self._loss.controller, known=step is not None)

    def _agree(self, controller: DeltaController, known: bool) -> None:
        """Take the delta of the ranks that know it."""
        delta = torch.tensor(controller.delta if known else -1.0, dtype=torch.float32, device=self.device_name)
        torch.distributed.all_reduce(delta, op=torch.distributed.ReduceOp.MAX)
        if delta.item() > 0:
            controller.delta = delta.item()

    def save_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> Any:
        """Save verl's checkpoint, and beside it what an adaptive threshold has come to."""
        saved = super().save_checkpoint(local_path, *args, **kwargs)
        if self._loss is not None and self._loss.controller is not None:
            # By every rank, since each node may have a folder of its own; all of them write the same.
            path = Path(local_path, _STATE_FILE)
            written = path.with_name(f".{_STATE_FILE}.{self.rank}")
            written.write_text(json.dumps(self._loss.controller.state_dict(), indent=2) + "\n")
            written.replace(path)
        return saved

    def load_checkpoint(self, local_path: str, *args: Any, **kwargs: Any) -> Any:
        """Load verl's checkpoint, and the adaptive threshold."""
        loaded = super().load_checkpoint(local_path, *args, **kwargs)
        if self._loss is None or self._loss.controller is None or not local_path:
            return loaded
        state = Path(local_path, _STATE_FILE)
        if state.exists():
            self._loss.controller.load_state_dict(json.loads(state.read_text()))
        elif self.rank == 0:
            warn(f"{state} does not exist: delta starts at its configured {self._loss.controller.delta}.")
        self._agree(self._loss.controller, known=state.exists())
        return loaded


def _notify_weight_sync(update_weights: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Wrap verl's ``ActorRolloutRefWorker.update_weights``: afterwards the actor is told of the weight sync."""

    @wraps(update_weights)  # with the attributes by which verl dispatches it
    async def notifying(self: Any, *args: Any, **kwargs: Any) -> Any:
        metrics = await update_weights(self, *args, **kwargs)
        if isinstance(actor := getattr(self, "actor", None), TrustRegionTrainingWorker):
            actor.on_weight_sync()
        return metrics

    return notifying


def register() -> None:
    """Make verl's actor use the worker.

    Raises:
        SeamError: when verl's worker is not as expected.
    """
    current = getattr(ActorRolloutRefWorker, "actor_worker_cls", None)
    expect(
        current in (TrainingWorker, TrustRegionTrainingWorker),
        "ActorRolloutRefWorker.actor_worker_cls",
        f"verl's TrainingWorker, found {current!r}",
    )
    expect_parameters(TrainingWorker.set_loss_fn, "TrainingWorker.set_loss_fn", "loss_fn")
    expect_parameters(TrainingWorker.train_mini_batch, "TrainingWorker.train_mini_batch", "data")
    expect_parameters(TrainingWorker.save_checkpoint, "TrainingWorker.save_checkpoint", "local_path")
    expect_parameters(TrainingWorker.load_checkpoint, "TrainingWorker.load_checkpoint", "local_path")
    expect_parameters(ppo_loss, "ppo_loss", "config", "model_output", "data", "dp_group")
    update_weights: Any = getattr(ActorRolloutRefWorker, "update_weights", None)
    expect(inspect.iscoroutinefunction(update_weights), "ActorRolloutRefWorker.update_weights", "a coroutine function")
    if current is TrainingWorker:
        ActorRolloutRefWorker.update_weights = _notify_weight_sync(update_weights)
        ActorRolloutRefWorker.actor_worker_cls = TrustRegionTrainingWorker


register()
