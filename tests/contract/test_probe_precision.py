"""The probe scores in the precision in which verl's FSDP2 actor computes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import distributed as dist
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM
from verl.utils.fsdp_utils import apply_fsdp2

from drpo_verl.adapters.head import compute_head_in_fp32
from drpo_verl.probe.job import Job
from drpo_verl.probe.score import score
from drpo_verl.probe.settings import Settings
from drpo_verl.probe.tokens import Samples

PROMPT, RESPONSE, VOCABULARY = 5, 12, 64


@pytest.fixture
def one_rank() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCABULARY, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, initializer_range=0.2,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(tmp_path)
    return tmp_path


def _fsdp2(folder: Path, dtype: torch.dtype, head_in_fp32: bool) -> Any:
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="sdpa").eval()
    if head_in_fp32:
        compute_head_in_fp32(module)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=True)
    apply_fsdp2(module, {"mp_policy": policy, "mesh": dist.init_device_mesh("cpu", (1,))}, {})
    return module


@pytest.mark.parametrize("head", [None, "float32"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
@pytest.mark.usefixtures("one_rank")
def test_the_log_probs_are_those_of_fsdp2(folder: Path, dtype: str, head: str | None) -> None:
    ids = torch.randint(0, VOCABULARY, (1, PROMPT + RESPONSE), generator=torch.Generator().manual_seed(1))
    sampled = ids[0, PROMPT:]
    samples = Samples(
        ids=ids[0].numpy(), prompt_lengths=np.array([PROMPT]), response_lengths=np.array([RESPONSE]),
        log_mu=np.zeros(RESPONSE, np.float32), top_ids=sampled.numpy()[:, None],
        top_log_mu=np.zeros((RESPONSE, 1), np.float32),
    )  # fmt: skip
    settings = Settings(str(folder), train_dtype=dtype, head_dtype=head)
    ours = score(Job(settings, str(folder), "cpu", [], top_k=0), samples).log_pi

    module, precision = _fsdp2(folder, getattr(torch, dtype), head == "float32"), getattr(torch, dtype)
    with torch.no_grad(), torch.autocast("cpu", precision, enabled=dtype != "float32"):
        logits = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    assert logits.dtype == getattr(torch, head or dtype)
    rows = logits[0, PROMPT - 1 : -1].float().log_softmax(-1)
    torch.testing.assert_close(torch.from_numpy(ours), rows.gather(1, sampled[:, None])[:, 0], atol=1e-6, rtol=0)
