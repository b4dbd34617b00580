"""The recomputed anchor: log pi_old of a rollout's samples, from the actor's own engine before the first update.

The trainer's policy is pi_old until its first update. In the first mini-batch, all of its micro-batches included, the
log-probabilities of the training pass itself are therefore pi_old's, and nothing is computed twice; where there is no
second mini-batch, nothing is computed at all. The samples of later mini-batches are scored here, in one forward pass
without a graph, dropout or entropy, by the call with which verl's own ``compute_log_prob`` scores them. It has the
same signature in all of verl's engines, and its results are where the loss is called: on every rank of the last
pipeline stage. verl's own recomputation (``bypass_mode=False``) scores all samples, from the driver, and sends the
results through it.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils
from verl.workers.utils.padding import response_from_nested

LOG_PROBS = "drpo_verl_anchor_log_probs"
"""The field of log pi_old, laid out as ``old_log_probs``; NaN for samples of the first mini-batch."""

_BYPASS_MODE = "algorithm.rollout_correction.bypass_mode"


class AnchorError(RuntimeError):
    """The policy before the first update is needed, and its log-probabilities are not there."""


def recompute(engine: Any, data: TensorDict, updates_since_sync: int) -> None:
    """Put log pi_old of the samples that the policy is trained on after its first update into the batch.

    Every rank calls it, with its share of the rollout.

    Args:
        engine: verl's, with the policy as it is now.
        data: the samples, as ``TrainingWorker.train_mini_batch`` gets them; gets the field ``LOG_PROBS``, unless there
            is one mini-batch only.
        updates_since_sync: how many there have been since the rollout engine last got the weights.

    Raises:
        AnchorError: when the policy has been updated already: what it is now is not pi_old.
    """
    if updates_since_sync:
        raise AnchorError(
            f"the policy has been updated {updates_since_sync} times since the last weight sync, when samples came "
            f"that are measured from what it was before: the actor has kept nothing of it. Set {_BYPASS_MODE}=False, "
            "with which verl keeps those weights and recomputes pi_old from them."
        )
    rows = _rows_after_first_update(engine, data)
    if not len(rows):
        return
    batch = tensordict_utils.index_select_tensor_dict(data, rows)
    _ask_for_log_probs(engine, batch)
    with engine.eval_mode():
        output = engine.infer_batch(batch, loss_function=None)["model_output"]
    if "log_probs" not in output:
        return  # not the last pipeline stage: the loss is not called here
    scored = response_from_nested(output["log_probs"], batch["response_mask"])
    log_mu = data["old_log_probs"]
    log_pi_old = [torch.full_like(row, math.nan) for row in log_mu.unbind()]
    for row, values in zip(rows.tolist(), scored.unbind(), strict=True):
        log_pi_old[row] = values.to(log_mu)
    data[LOG_PROBS] = torch.nested.as_nested_tensor(log_pi_old, layout=torch.jagged)


def required(fields: TensorDict) -> Tensor:
    """Log pi_old of a micro-batch after the first update.

    Args:
        fields: of the micro-batch.

    Raises:
        AnchorError: when it was not recomputed.
    """
    if LOG_PROBS not in fields:
        raise AnchorError(
            "a mini-batch after the first has no log-probabilities of pi_old. They are computed in "
            f"TrainingWorker.train_mini_batch, which was not what this training called. Set {_BYPASS_MODE}=False."
        )
    return fields[LOG_PROBS]


def _rows_after_first_update(engine: Any, data: TensorDict) -> Tensor:
    """The samples that some mini-batch after the first holds; on every rank as many."""

    def setting(name: str, default: Any = None) -> Any:
        return tensordict_utils.get(data, key=name, default=default)

    samples, size, count = data.shape[0], setting("mini_batch_size"), setting("num_mini_batch")
    size = samples // count if size is None else size // engine.get_data_parallel_size()
    rows = torch.arange(samples)
    if setting("epochs", 1) > 1:
        return rows  # the first mini-batch's come again
    # As verl cuts the batch, shuffled or not (TrainingWorker.train_mini_batch).
    mini_batches = tensordict_utils.make_iterator(
        TensorDict({"row": rows}, batch_size=samples),
        mini_batch_size=size,
        epochs=1,
        seed=setting("seed", 42) + engine.get_data_parallel_rank(),
        dataloader_kwargs=setting("dataloader_kwargs", {}),
    )
    first = next(mini_batches)["row"]
    return rows[torch.isin(rows, first, invert=True)]


def _ask_for_log_probs(engine: Any, batch: TensorDict) -> None:
    """Set what ``TrainingWorker.infer_batch`` sets, but for the entropy, and for micro-batches: those of the updates.

    They fit into memory and divide a mini-batch, where those of ``log_prob_*`` are made for whole rollouts.
    """
    config, model = engine.engine_config, engine.model_config
    tensordict_utils.assign_non_tensor(
        batch,
        calculate_entropy=False,
        distillation_use_topk=False,
        use_remove_padding=model.get("use_remove_padding", False),
        use_fused_kernels=config.use_fused_kernels,
        use_dynamic_bsz=config.use_dynamic_bsz,
        max_token_len_per_gpu=config.max_token_len_per_gpu,
        micro_batch_size_per_gpu=config.micro_batch_size_per_gpu,
    )
