"""The actor's loss function: verl's protocol on one side, the objectives on the other."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import Any

from tensordict import TensorDict
from torch import Tensor
from verl.trainer.ppo.core_algos import agg_loss, kl_penalty
from verl.utils.metric import AggregationType, Metric
from verl.workers.config import ActorConfig
from verl.workers.utils.padding import no_padding_2_padding

from drpo_verl.adapters import anchor, top_k
from drpo_verl.adapters.config import TrustRegionLossConfig
from drpo_verl.adapters.logits import PLAIN, Layout
from drpo_verl.adapters.policy_loss import BehaviourLogProbError, LossInputs, require_usable, trust_region_loss
from drpo_verl.adapters.worst_token import WorstOfStep
from drpo_verl.losses.partition import kullback_leibler_derivative
from drpo_verl.metrics.names import ABS_PROB_DIFF_MAX
from drpo_verl.run_folder import worst_tokens
from drpo_verl.seams import expect

STATISTICS = "drpo_verl/statistics"
"""Among the metrics of a micro-batch: the ``TokenStatistics`` of its tokens, for the worker to merge."""

_ROLLOUT = "rollout_log_probs"


class TrustRegionLoss:
    """The loss function of verl's actor for one of our objectives, in the place of verl's ``ppo_loss``.

    verl's engine calls it for each micro-batch: with the log-probabilities, for the loss; and before that with the
    logits while they exist, if the worker has asked for it, as Top-K methods do. The entropy and KL terms, the
    aggregation and verl's own metrics are those of ``ppo_loss``.

    Args:
        config: the actor's, with our policy-loss section.
        engine: verl's, which calls it; asked about the logits where they are not laid out plainly.

    Attributes:
        settings: our policy-loss section.
        objective: the row of the table.
        controller: of an adaptive threshold.
        mini_batch: which one since the last weight sync it is called for, from 1: in the first, pi is pi_old.
        worst: the token of the step on which pi and mu differ most.
    """

    def __init__(self, config: ActorConfig, engine: Any = None) -> None:
        self._config = config
        self._engine = engine
        self.settings: TrustRegionLossConfig = config.policy_loss
        self.objective = self.settings.objective()
        self.controller = self.settings.controller()
        self.mini_batch = 0
        self.worst = WorstOfStep()

    def __call__(
        self,
        model_output: dict[str, Tensor] | None = None,
        data: TensorDict | None = None,
        dp_group: Any = None,
        student_logits: Tensor | None = None,
        data_format: str | None = None,
        **_: Any,
    ) -> Any:
        """Called by verl's engine.

        Args:
            model_output: log-probabilities of one micro-batch, as the engine gives them.
            data: the micro-batch.
            dp_group: the data-parallel group.
            student_logits: the logits, ``[1, tokens, V]``, or laid out as Megatron's are: with them, the call
                returns the divergences of the tokens, and no loss.
            data_format: how Megatron has laid them out; None with other engines.
            **_: what else an engine says about the logits.

        Returns:
            The scalar loss, and verl's metrics together with a ``TokenStatistics``; with logits, what is kept of them.

        Raises:
            BehaviourLogProbError: when rollout log-probabilities are missing or not numbers.
            TopKError: when Top-K log-probabilities are missing.
        """
        assert data is not None
        if student_logits is not None:
            divergence = self.objective.geometry.divergence
            assert divergence is not None
            derivative = None
            if self.objective.direction.needs_derivative:
                derivative = partial(kullback_leibler_derivative, tail=str(self.settings.tail))
            layout = self._layout(data, data_format)
            return top_k.divergence_from_logits(student_logits, data, divergence, layout, derivative)
        assert model_output is not None
        if self.settings.rollout_log_probs:
            _require_behaviour(data)
        return self._loss(model_output, data)

    def _layout(self, data: TensorDict, data_format: str | None) -> Layout:
        if data_format is None:
            expect(
                self._config.strategy != "megatron",
                "MegatronEngine's call of the loss with its logits",
                "data_format, without which nobody knows how they are laid out",
            )
            return PLAIN
        from drpo_verl.adapters import megatron  # needs megatron-core, as the engine that calls does

        return megatron.layout(self._engine, data, data_format)

    def _loss(self, model_output: dict[str, Tensor], data: TensorDict) -> tuple[Tensor, dict[str, Any]]:
        config, in_global_batch = self._config, self._global_batch(data)
        entropy = model_output.get("entropy")
        names = ["response_mask", "old_log_probs", "advantages", "rollout_is_weights", "ref_log_prob", _ROLLOUT]
        names.append(anchor.LOG_PROBS)
        fields = data.select(*(name for name in names if name in data)).to_padded_tensor()
        partition_divergence, partition_derivative = (
            no_padding_2_padding(model_output[name], data) if is_needed else None
            for name, is_needed in (
                (top_k.DIVERGENCE, self.objective.needs_top_k),
                (top_k.DERIVATIVE, self.objective.direction.needs_derivative),
            )
        )
        log_prob = no_padding_2_padding(model_output["log_probs"], data)
        log_anchor, log_behaviour = self._anchor(log_prob, fields)
        inputs = LossInputs(
            log_prob=log_prob,
            old_log_prob=log_anchor,
            advantages=fields["advantages"],
            response_mask=fields["response_mask"].bool(),
            rollout_is_weights=fields.get("rollout_is_weights"),
            log_behaviour=log_behaviour,
            partition_divergence=partition_divergence,
            partition_derivative=partition_derivative,
        )
        delta = self.controller.delta if self.controller else None
        pg_loss, verl_metrics, accumulators = trust_region_loss(config, inputs, config.loss_agg_mode, delta)
        metrics: dict[str, Any] = dict(Metric.from_dict(verl_metrics, aggregation=AggregationType.MEAN))

        def aggregated(per_token: Tensor) -> Tensor:
            return agg_loss(
                loss_mat=per_token,
                loss_mask=inputs.response_mask,
                loss_agg_mode=config.loss_agg_mode,
                **config.global_batch_info,
            )

        loss, terms = pg_loss, {"actor/pg_loss": pg_loss}
        if entropy is not None:
            terms["actor/entropy_loss"] = aggregated(no_padding_2_padding(entropy, data))
            loss = loss - config.entropy_coeff * terms["actor/entropy_loss"]
        if config.use_kl_loss:
            penalty = kl_penalty(
                logprob=inputs.log_prob, ref_logprob=fields["ref_log_prob"], kl_penalty=config.kl_loss_type
            )
            terms["kl_loss"] = aggregated(penalty)
            loss = loss + terms["kl_loss"] * config.kl_loss_coef
            metrics["kl_coef"] = config.kl_loss_coef

        statistics, values = accumulators.to_host_with(*terms.values())
        require_usable(statistics, inputs)
        aggregation = AggregationType.SUM if in_global_batch else AggregationType.MEAN
        metrics |= {
            name: Metric(value=value, aggregation=aggregation) for name, value in zip(terms, values, strict=True)
        }
        metrics[STATISTICS] = replace(statistics, drift=self.mini_batch > 1)
        if worst_tokens.PATH_VARIABLE in os.environ:
            largest = statistics.maxima[ABS_PROB_DIFF_MAX]
            self.worst.offer(largest, model_output["log_probs"], _behaviour_field(data), data)
        return loss, metrics

    def _anchor(self, log_prob: Tensor, fields: TensorDict) -> tuple[Tensor, Tensor | None]:
        """What distances are measured from, and log mu where that is something else."""
        if not self.settings.bypass_mode:  # verl has recomputed pi_old
            return fields["old_log_probs"], fields.get(_ROLLOUT)
        if not self.objective.recomputed_anchor:
            return fields["old_log_probs"], None
        if self.mini_batch <= 1:
            return log_prob.detach(), fields["old_log_probs"]
        return anchor.required(fields), fields["old_log_probs"]

    def _global_batch(self, data: TensorDict) -> bool:
        """Tell ``agg_loss``, and verl's own losses, of which global batch this micro-batch is a part.

        Returns:
            Whether a micro-batch's loss is its share of the global batch's, so that they add up to it.
        """
        sizes = {name: data[name] for name in ("dp_size", "batch_num_tokens", "global_batch_size")}
        sizes["loss_scale_factor"] = self._config.loss_scale_factor
        self._config.global_batch_info.update(sizes)
        dp_size = sizes.pop("dp_size")
        return bool(dp_size > 1 or any(size is not None for size in sizes.values()))


def _positions(tensor: Tensor) -> int:
    # The V1 trainer's are nested; the legacy trainer's, padded.
    return int(tensor.values().numel() if tensor.is_nested else tensor.numel())


def _behaviour_field(data: TensorDict) -> str:
    return _ROLLOUT if _ROLLOUT in data else "old_log_probs"  # the same in bypass mode


def _require_behaviour(data: TensorDict) -> None:
    field = _behaviour_field(data)
    tokens = _positions(data["response_mask"])
    present = _positions(data[field]) if field in data else 0
    if present != tokens:
        raise BehaviourLogProbError(
            f"{present} rollout log-probabilities for {tokens} response positions of this micro-batch: every "
            "sampled token needs one. Set actor_rollout_ref.rollout.calculate_log_probs=True, and look at whether "
            "the agent loop returns response_logprobs."
        )
