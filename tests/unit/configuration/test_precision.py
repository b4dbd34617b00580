"""What the two engines of a run compute in, and how it is said that they differ."""

from __future__ import annotations

from typing import Any

import pytest
from omegaconf import OmegaConf

from drpo_verl.configuration.precision import rollout_differences, rollout_numbers, trainer_numbers
from drpo_verl.configuration.run_config import RunConfig

FP32 = {"mixed_precision": {"param_dtype": "fp32"}}
FP16 = {"mixed_precision": {"param_dtype": "fp16"}}


def run_of(rollout: dict[str, Any], fsdp: dict[str, Any], vllm: dict[str, Any], **model: Any) -> RunConfig:
    actor = {"strategy": "fsdp2", "fsdp_config": fsdp}
    all_of_it = {"rollout": {**rollout, "engine_kwargs": {"vllm": vllm}}, "actor": actor, "model": model}
    return RunConfig(OmegaConf.create({"actor_rollout_ref": all_of_it}))


@pytest.mark.parametrize(
    ("rollout", "fsdp", "vllm", "differences"),
    [
        ({}, {}, {}, ()),  # verl's defaults: bf16 on both sides
        ({"dtype": "float32"}, FP32, {}, ()),
        ({"dtype": "half"}, FP16, {}, ()),
        ({"dtype": "float32"}, FP32, {"kv_cache_dtype": "auto"}, ()),
        ({"dtype": "bfloat16"}, FP32, {}, ("activations in bf16, the trainer's in fp32",)),
        # dtype of verl's fsdp.yaml is not what its engine reads.
        ({"dtype": "float16"}, {"dtype": "float16"}, {}, ("activations in fp16, the trainer's in bf16",)),
        ({}, FP32, {"kv_cache_dtype": "fp8_e4m3"},
         ("activations in bf16, the trainer's in fp32", "a KV cache in fp8_e4m3")),
        ({"quantization": "fp8"}, {}, {}, ("weights rounded to fp8",)),
        ({"dtype": "float32"}, FP32, {"quantization": "emulated_int4"},
         ("weights rounded to int4 and back (an emulation)",)),
        ({"name": "sglang"}, {}, {"kv_cache_dtype": "fp8_e4m3", "quantization": "emulated_int4"}, ()),
        ({}, {}, {"hf_overrides": {"head_dtype": "float32"}}, ("an LM head in fp32, the trainer's in bf16",)),
    ],
)  # fmt: skip
def test_every_rounding_that_one_side_alone_does_is_named(
    rollout: dict[str, Any], fsdp: dict[str, Any], vllm: dict[str, Any], differences: tuple[str, ...]
) -> None:
    assert rollout_differences(run_of(rollout, fsdp, vllm)) == differences


def test_a_head_in_fp32_on_both_sides_is_no_difference() -> None:
    run = run_of({}, {}, {"hf_overrides": {"head_dtype": "float32"}}, override_config={"head_dtype": "float32"})
    assert (rollout_numbers(run).head, trainer_numbers(run).head) == ("fp32", "fp32")
    assert rollout_differences(run) == ()


@pytest.mark.parametrize(("rollout", "vllm", "words"), [
    ({}, {}, "bf16"),
    ({"dtype": "float32"}, {"quantization": "emulated_int3"}, "fp32, weights in int3 and back"),
    ({"quantization": "fp8"}, {"kv_cache_dtype": "fp8_e4m3", "hf_overrides": {"head_dtype": "float32"}},
     "bf16, weights in fp8, a KV cache in fp8_e4m3, an LM head in fp32"),
])  # fmt: skip
def test_what_a_rollout_computes_in_is_said_in_words(rollout: dict[str, Any], vllm: dict[str, Any], words: str) -> None:
    assert str(rollout_numbers(run_of(rollout, {}, vllm))) == words


def test_fp8_end_to_end_is_no_difference_and_fp8_on_one_side_is() -> None:
    megatron = {"dtype": "bfloat16", "override_transformer_config": {"fp8": "hybrid"}}
    both = {"actor": {"strategy": "megatron", "megatron": megatron}, "rollout": {"quantization": "fp8"}}
    assert rollout_differences(RunConfig(OmegaConf.create({"actor_rollout_ref": both}))) == ()
    plain = RunConfig(OmegaConf.create({"actor_rollout_ref": {**both, "rollout": {}}}))
    assert rollout_differences(plain) == ("weights in bf16, the trainer's in fp8",)
