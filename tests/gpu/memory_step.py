"""The peak memory of an update, beside what ``drpo-verl check`` estimates of it: python memory_step.py DEVICE FOLDER.

The policy is ``experiment=gpu_qwen3_0_6b``'s, with random weights: nothing is downloaded. On a CPU, where no peak is
measured, it is a hundredth of the size. Prints a JSON object with ``estimated`` and ``measured``, in bytes; null on a
CPU.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from omegaconf import open_dict
from verl.utils import tensordict_utils

from benchmarks.actor import SMALL, batch, be_the_only_rank, configuration, random_model, sample, worker
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.preflight.memory_estimate import Memory, estimate

DEVICE, FOLDER = sys.argv[1], Path(sys.argv[2])
PROMPT = RESPONSE = 512
NOT_TORCHS = "CUDA, NCCL"
"""The part of the estimate that torch's allocator does not see."""


def main() -> None:
    """Make the model, take two updates and print both figures."""
    overrides = ["actor_rollout_ref.rollout.n=1"]
    if DEVICE == "cpu":  # which may have no compiler
        actor = "actor_rollout_ref.actor"
        overrides += [f"{actor}.use_torch_compile=false", f"{actor}.fsdp_config.use_torch_compile=false"]
    config = configuration(*overrides, experiment="gpu_qwen3_0_6b")
    with open_dict(config):
        if DEVICE == "cpu":
            config.check.architecture.update(SMALL)
        config.actor_rollout_ref.model.path = str(FOLDER)
    random_model(config.check.architecture, FOLDER, DEVICE)
    be_the_only_rank()
    policy = worker(config).actor
    generator = torch.Generator().manual_seed(0)
    vocabulary = config.check.architecture.vocab_size
    tokens = config.actor_rollout_ref.actor.ppo_max_token_len_per_gpu
    rows = [
        sample(
            torch.randint(0, vocabulary, (PROMPT,), generator=generator),
            torch.randint(0, vocabulary, (RESPONSE,), generator=generator),
            torch.full((RESPONSE,), -11.0),
            torch.randn(1, generator=generator),
        )
        for _ in range(2 * tokens // (PROMPT + RESPONSE))
    ]
    measured = None
    for _ in range(2):  # the optimiser's states are there after the first
        if DEVICE == "cuda":
            torch.cuda.reset_peak_memory_stats()
        output = policy.train_mini_batch(batch(rows, samples_per_update=len(rows)))
        assert tensordict_utils.get(output, "metrics")["grad_norm"]
        if DEVICE == "cuda":
            measured = torch.cuda.max_memory_allocated()
    held = estimate(RunConfig(config))
    assert held is not None
    estimated = Memory.total([part for part in held.update if part.name != NOT_TORCHS])
    print(json.dumps({"estimated": estimated, "measured": measured}))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
