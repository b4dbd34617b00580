"""The estimate against figures that others have published, and against arithmetic by hand."""

from __future__ import annotations

from typing import Any

import models
import pytest
from configurations import ACTOR, ASYNC, CPU, DENSE, EXPERTS, MODEL, ROLLOUT, architecture, composed
from omegaconf import OmegaConf

from drpo_verl.configuration.architecture import Architecture, _count_by_formula, read_architecture
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.search_path import config_dir
from drpo_verl.preflight.memory_estimate import GIB, Memory, Part, estimate, kv_bytes


def sizes(parts: list[Part]) -> dict[str, float]:
    return {part.name: part.size / GIB for part in parts}


def estimated(*overrides: str, base: tuple[str, ...] = DENSE) -> Memory:
    memory = estimate(RunConfig(composed(base, *overrides)))
    assert memory is not None
    return memory


def known(fields: dict[str, Any]) -> Architecture:
    model = read_architecture(fields, None)
    assert model is not None
    return model


@pytest.mark.parametrize(
    ("fields", "total"),
    [  # `parameters` of the safetensors index on the hub, and the model cards' 4.0 B, 30.5 B and 1.8 B
        (models.QWEN3_4B, 4_022_468_096),
        (models.QWEN3_30B_A3B, 30_532_122_624),
        (models.R1_DISTILL_QWEN_1_5B, 1_777_088_000),
    ],
)
def test_parameters_are_counted_exactly(fields: dict[str, Any], total: int) -> None:
    parameters = known(fields).parameters
    assert parameters.exact and parameters.total == total


@pytest.mark.parametrize("fields", [models.QWEN3_4B, models.QWEN3_30B_A3B, models.R1_DISTILL_QWEN_1_5B])
def test_the_formula_is_close(fields: dict[str, Any]) -> None:
    exact, formula = known(fields).parameters, _count_by_formula(fields)
    assert formula.total == pytest.approx(exact.total, rel=1e-3) and not formula.exact
    assert (formula.embedding, formula.head, formula.experts) == (exact.embedding, exact.head, exact.experts)


def test_a_model_that_transformers_does_not_know_is_counted_by_the_formula() -> None:
    parameters = known({**models.QWEN3_4B, "model_type": "of_tomorrow"}).parameters
    assert not parameters.exact and parameters.total == pytest.approx(4.02e9, rel=1e-2)


def test_optimiser_states_are_zeros_16_bytes_a_parameter() -> None:
    # ZeRO (arXiv 1910.02054), figure 1: 16 bytes a parameter, over the ranks.
    update = sizes(estimated().update)
    states = update["weights"] + update["gradients"] + update["optimiser states"]
    assert states == pytest.approx(16 * 4_022_468_096 / 8 / GIB, rel=1e-6)


@pytest.mark.parametrize(
    ("fields", "tensor_parallel", "loaded"),
    [
        (models.QWEN3_30B_A3B, 4, 14.2474),  # vLLM's log, vllm-project/vllm issue 17469
        (models.QWEN3_4B, 1, 7.6785),  # vLLM's log, kyuz0/amd-strix-halo-vllm-toolboxes pull request 5
    ],
)
def test_the_weights_of_the_rollout_are_what_vllm_reports(
    fields: dict[str, Any], tensor_parallel: int, loaded: float
) -> None:
    memory = estimated(architecture(fields), f"{ROLLOUT}.tensor_model_parallel_size={tensor_parallel}")
    assert sizes(memory.rollout)["weights"] == pytest.approx(loaded, rel=0.03)


def test_the_kv_cache_is_that_of_the_vllm_paper() -> None:
    # arXiv 2309.06180, section 3: 800 KB a token for OPT-13B.
    fields = {**models.QWEN3_4B, "model_type": "opt-like", "num_hidden_layers": 40, "hidden_size": 5120,
              "num_attention_heads": 40, "num_key_value_heads": 40, "head_dim": 128}  # fmt: skip
    run = RunConfig(composed(DENSE, architecture(fields), f"{ROLLOUT}.tensor_model_parallel_size=1"))
    assert run.architecture is not None and kv_bytes(run, run.architecture) == 800 * 1024


def test_layers_without_full_attention_have_no_kv_cache() -> None:
    types = ["linear_attention"] * 27 + ["full_attention"] * 9
    hybrid = known({**models.QWEN3_4B, "model_type": "hybrid", "layer_types": types})
    run = RunConfig(composed(DENSE))
    assert run.architecture is not None
    assert 4 * kv_bytes(run, hybrid) == kv_bytes(run, run.architecture)


def test_a_hybrid_may_have_an_interval_instead_of_types() -> None:
    shipped = OmegaConf.load(config_dir() / "model" / "qwen3_5_35b_a3b_base.yaml").check.architecture
    model = known(OmegaConf.to_container(shipped))  # type: ignore[arg-type]
    assert (model.attention_layers, model.layers) == (10, 40)


def test_settings_have_their_effect() -> None:
    plain = estimated()
    logits = sizes(plain.update)["logits"]
    assert logits == pytest.approx(10240 * 151936 * 4 / GIB)
    assert "logits" not in sizes(estimated(f"{MODEL}.use_fused_kernels=true").update)
    head = sizes(estimated("head=fp32").update)
    assert head["logits"] == pytest.approx(2 * logits) and head["LM head"] == pytest.approx(151936 * 2560 * 8 / GIB)
    assert sizes(estimated(f"{ACTOR}.ppo_max_token_len_per_gpu=20480").update)["logits"] == pytest.approx(2 * logits)
    whole = estimated(f"{MODEL}.enable_gradient_checkpointing=false")
    assert sizes(whole.update)["activations"] > 10 * sizes(plain.update)["activations"]
    offloaded = estimated(f"{ACTOR}.fsdp_config.param_offload=true", f"{ACTOR}.fsdp_config.optimizer_offload=true")
    assert Memory.total(offloaded.rollout) < Memory.total(plain.rollout)
    adapters = sizes(estimated(f"{MODEL}.lora_rank=32").update)
    assert adapters["optimiser states"] < 0.05 * sizes(plain.update)["optimiser states"]
    host = sizes(estimated(f"{ACTOR}.fsdp_config.offload_policy=true").update)
    assert host["weights"] == host["optimiser states"] == 0
    quantised = sizes(estimated(f"{ROLLOUT}.quantization=fp8").rollout)
    assert quantised["weights"] < 0.6 * sizes(plain.rollout)["weights"]
    assert sizes(estimated("method=dppo_topk_tv").update)["Top-K"] == pytest.approx((10240 * 21 * 64 + 2**26) / GIB)


def test_megatron_splits_experts_by_their_own_sizes() -> None:
    update = sizes(estimated(base=EXPERTS).update)
    parameters = known(models.QWEN3_30B_A3B).parameters
    here = (parameters.total - parameters.experts) / 4 + parameters.experts / 8
    assert update["weights"] == pytest.approx(2 * here / GIB) and update["gradients"] == pytest.approx(4 * here / GIB)
    states = 12 * parameters.total / 32
    assert update["optimiser states"] == pytest.approx(states / GIB)


def test_a_rollout_on_its_own_cards_shares_none_with_the_trainer() -> None:
    assert not [part for part in estimated(base=ASYNC).rollout if part.name.startswith("trainer")]
    assert [part for part in estimated().rollout if part.name.startswith("trainer")]


def test_the_cards_of_the_trainer_may_sample_too_beside_what_it_keeps() -> None:
    # verl's separate_async with hybrid_engine=True: as if the two shared all cards, besides those of the rollout.
    assert estimated(base=ASYNC).hybrid == estimated().rollout
    assert estimated("actor_rollout_ref.hybrid_engine=false", base=ASYNC).hybrid == estimated().hybrid == []


def test_a_cpu_has_no_card() -> None:
    assert estimate(RunConfig(composed(CPU))) is None
