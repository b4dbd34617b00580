"""Experiments and methods: composed, accepted or refused for a reason, and what each means for the papers.

Every method whose thresholds depend on the experiment is composed with every experiment, and each of the others with an
experiment of every backend. A test of the files holds that the pairs that are left out have nothing in common.
The papers' numbers are written here once more, independently of the YAML.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from transformers import AutoConfig, AutoModelForCausalLM
from verl.trainer.ppo.core_algos import compute_policy_loss_vanilla
from verl.utils.config import omega_conf_to_dataclass, validate_config

from drpo_verl.check import validate_or_raise
from drpo_verl.configuration import search_path
from drpo_verl.configuration.compose import CompositionError, compose_run
from drpo_verl.configuration.precision import EMULATED, EMULATED_FORMATS
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.models.tiny_model import LongTailRecipe
from drpo_verl.preflight import check_run
from drpo_verl.preflight.command import summarise

CONFIGS = search_path.config_dir()
VERL = search_path.verl_config_dir()


def _names(group: str) -> list[str]:
    folder = CONFIGS / group
    return sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))


METHODS = _names("method")
EXPERIMENTS = _names("experiment")
DEPENDENT = [name for name in METHODS if "oc.select:paper." in (CONFIGS / "method" / f"{name}.yaml").read_text()]
"""Methods with a threshold that experiments set."""
BACKENDS = ("cpu", "fsdp2", "megatron")


def _pairs() -> list[tuple[str, str]]:
    """The experiments and methods that are composed with each other."""

    def backend(experiment: str) -> str:
        found = re.search(r"override /backend: (\w+)", (CONFIGS / "experiment" / f"{experiment}.yaml").read_text())
        return found[1] if found else "cpu"  # of the experiment that it begins from

    by_backend = [[each for each in EXPERIMENTS if backend(each) == name] for name in BACKENDS]
    others = enumerate(name for name in METHODS if name not in DEPENDENT)
    return [(experiment, method) for method in DEPENDENT for experiment in EXPERIMENTS] + [
        (experiments[i % len(experiments)], method) for i, method in others for experiments in by_backend
    ]


def _compose(experiment: str, *overrides: str) -> DictConfig:
    search_path.register()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("train", [f"experiment={experiment}", *overrides])


# Of verl's own configuration, what no experiment and no method is about: most of it, and of the time to compose it.
LEFT_OUT = (
    "critic", "distillation", "global_profiler", "transfer_queue", "skip", "reward_model", "sandbox_fusion",
    "reward.reward_model", "reward.sandbox_fusion", "actor_rollout_ref.ref", "actor_rollout_ref.model.mtp",
    "actor_rollout_ref.actor.profiler", "actor_rollout_ref.actor.qat", "actor_rollout_ref.actor.fsdp_config.qat",
    "actor_rollout_ref.actor.fsdp_config.turbo_config", "actor_rollout_ref.actor.megatron.qat",
    "actor_rollout_ref.rollout.profiler", "actor_rollout_ref.rollout.prometheus", "actor_rollout_ref.rollout.trace",
    "actor_rollout_ref.rollout.multi_turn", "trainer.v1.separate_async.hybrid_rollout",
)  # fmt: skip


def _without_the_rest(config: DictConfig) -> DictConfig:
    OmegaConf.set_struct(config, False)
    for name in LEFT_OUT:
        parent, _, key = name.rpartition(".")
        holder = OmegaConf.select(config, parent) if parent else config
        if holder is not None:
            holder.pop(key, None)
    return config


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Within it, ``_compose`` puts ours over a slim copy of verl's configuration, in half the time."""
    folder = tmp_path_factory.mktemp("slim")
    for engine in ("dp", "megatron"):
        search_path.register()
        with initialize_config_dir(str(search_path.verl_config_dir()), version_base="1.3"):
            config = compose("ppo_trainer", [f"model_engine={engine}"])
        for group, text in (
            ("model_engine", f"model_engine: {engine}\n"),
            ("slim", OmegaConf.to_yaml(_without_the_rest(config))),
        ):
            (folder / group).mkdir(exist_ok=True)
            (folder / group / f"{engine}.yaml").write_text(f"# @package _global_\n{text}")
    (folder / "ppo_trainer.yaml").write_text("defaults:\n  - model_engine: dp\n  - slim: ${model_engine}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_path, "verl_config_dir", lambda: folder)
        yield


@pytest.fixture(autouse=True)
def _a_cpu_that_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an experiment means does not depend on the machine that looks at it."""
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "AVX512")


@dataclass(frozen=True)
class Setting:
    """What a paper says of one of its settings.

    Attributes:
        model: on Hugging Face.
        prompts: a rollout.
        mini_batch: prompts an update.
        n: responses to a prompt.
        prompt: tokens.
        response: tokens.
        evaluation: samples a problem, temperature, top-p.
        lr: learning rate.
        quantization: of the rollout.
        trainer: FSDP2, or Megatron where the setting needs it.
        aggregation: of the loss.
    """

    model: str
    prompts: int
    mini_batch: int
    n: int
    prompt: int
    response: int
    evaluation: tuple[int, float, float]
    lr: float = 1e-6
    quantization: str | None = None
    trainer: str = "fsdp2"
    aggregation: str = "seq-mean-token-sum-norm"
    data: str = "dapo_math"


DRPO_EVALUATION, DPPO_EVALUATION = (16, 1.0, 1.0), (32, 0.7, 0.95)
DRPO_BATCH: dict[str, Any] = {"prompts": 64, "mini_batch": 16, "n": 8, "evaluation": DRPO_EVALUATION}
DPPO_MOE: dict[str, Any] = {
    "prompts": 256, "mini_batch": 32, "n": 16, "prompt": 1024, "response": 16384, "evaluation": DPPO_EVALUATION
}  # fmt: skip
LENGTHS: dict[str, Any] = {"prompt": 2048, "response": 8192}
BASE = "Qwen/Qwen3-30B-A3B-Base"
R1D = "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
SETTINGS = {
    "drpo/qwen3_4b": Setting("Qwen/Qwen3-4B-Base", **DRPO_BATCH, **LENGTHS),
    "drpo/qwen3_30b_a3b_bf16": Setting(BASE, **DRPO_BATCH, **LENGTHS),
    "drpo/qwen3_30b_a3b_fp8_rollout": Setting(BASE, **DRPO_BATCH, **LENGTHS, quantization="fp8"),
    "drpo/qwen3_30b_a3b_fp8_e2e": Setting(BASE, **DRPO_BATCH, **LENGTHS, quantization="fp8", trainer="megatron"),
    "drpo/qwen3_5_35b_a3b": Setting("Qwen/Qwen3.5-35B-A3B-Base", **DRPO_BATCH, **LENGTHS),
    "drpo/r1d_1_5b": Setting(R1D, **DRPO_BATCH, prompt=1024, response=6976, data="sanity_r1d"),
    "dppo/qwen3_30b_a3b_base": Setting(BASE, **DPPO_MOE),
    "dppo/qwen3_30b_a3b_base_r3": Setting(BASE, **DPPO_MOE, trainer="megatron"),
    "dppo/qwen3_30b_a3b_thinking": Setting("Qwen/Qwen3-30B-A3B", **DPPO_MOE),
    "dppo/qwen3_8b": Setting("Qwen/Qwen3-8B-Base", 128, 32, 8, 1024, 8000, DPPO_EVALUATION),
    "dppo/lora": Setting(BASE, 128, 16, 8, 1024, 8000, DPPO_EVALUATION, lr=1e-5),
    "dppo/sanity_r1d": Setting(R1D, 64, 16, 8, 1024, 6976, DPPO_EVALUATION, data="sanity_r1d"),
    "dppo/verl_script": Setting(
        "Qwen/Qwen3-30B-A3B", 256, 32, 16, 2048, 8192, (1, 0.0, 1.0), trainer="megatron",
        aggregation="seq-mean-token-sum",
    ),
}  # fmt: skip
DECOUPLED = ("minirl", "drpo_decoupled")
ON_THE_CPU = ["cpu_smollm2", "cpu_tiny", "cpu_tiny_moe"]
ON_ONE_GPU = ["gpu_qwen3_0_6b", "gpu_smollm2", "gpu_tiny"]

# By method: threshold (or the pair of clipping's), cap on the ratio (for verl's own clipping, clip_ratio_c). None: it
# has none.
Thresholds = dict[str, tuple[Any, float | None]]
DPPO_LARGE: Thresholds = {
    "cispo": (None, 1.0), "pg_tis": (None, 3.0), "spo": (12.5, None), "drpo": (12.5, None), "mask_drpo": (0.2, None),
    "surrogate": (None, None), "minirl": ((0.2, 0.27), 5.0), "grpo": ((0.2, 0.2), 1e4),
    "grpo_clip_higher": ((0.2, 0.27), 1e4), "dppo_binary_tv": (0.2, 5.0), "dppo_topk_tv": (0.2, 5.0),
    "dppo_binary_kl": (0.05, 5.0), "dppo_topk_kl": (0.05, 5.0), "drpo_topk": (0.5, None), "drpo_adaptive": (0.2, None),
    "ipo": (0.1, None), "prime_rl": (0.2, None), "icepop": ((0.5, 4.0), None), "kpop": (2.0, None), "pdm": (0.15, 5.0),
    "trm_max": (0.1, None), "trm_avg": (0.002, None), "cppo": (0.15, None), "cppo_soft": (0.15, None),
    "drpo_prefix": (0.15, None),
    "drpo_decoupled": (0.2, None),
}  # fmt: skip
DRPO_ALL: Thresholds = {
    **DPPO_LARGE, "grpo_clip_higher": ((0.2, 0.28), 1e4), "dppo_binary_tv": (0.15, 1e4), "dppo_topk_tv": (0.15, 1e4),
    "dppo_binary_kl": (0.05, 1e4), "dppo_topk_kl": (0.05, 1e4), "mask_drpo": (0.15, None),
}  # fmt: skip
WITHOUT_CAP: Thresholds = {
    "dppo_binary_tv": (0.15, None), "dppo_topk_tv": (0.15, None), "dppo_binary_kl": (0.05, None),
    "dppo_topk_kl": (0.05, None), "mask_drpo": (0.15, None),
}  # fmt: skip
THRESHOLDS: dict[str, Thresholds] = {
    **{name: DRPO_ALL if name.startswith("drpo/") else DPPO_LARGE for name in SETTINGS},
    "drpo/qwen3_30b_a3b_fp8_e2e": {
        **DRPO_ALL, "dppo_binary_tv": (0.6, 1e4), "dppo_topk_tv": (0.6, 1e4), "mask_drpo": (0.6, None)
    },
    "dppo/lora": {
        **DPPO_LARGE, "dppo_binary_tv": (0.15, 5.0), "dppo_topk_tv": (0.15, 5.0), "mask_drpo": (0.15, None)
    },
    "dppo/sanity_r1d": {
        **DPPO_LARGE, **WITHOUT_CAP, "grpo_clip_higher": ((0.2, 0.28), 1e4), "minirl": ((0.2, 0.28), 5.0)
    },
    "dppo/verl_script": {
        **DPPO_LARGE, "grpo_clip_higher": ((0.2, 0.28), 1e4),
        "dppo_binary_tv": (0.15, 1e4), "dppo_topk_tv": (0.15, 1e4),
        "dppo_binary_kl": (0.05, 1e4), "dppo_topk_kl": (0.05, 1e4), "mask_drpo": (0.15, None),
    },
}  # fmt: skip


def _thresholds(config: DictConfig, method: str) -> tuple[Any, float | None]:
    actor = config.actor_rollout_ref.actor
    if method.startswith("grpo"):
        return (actor.clip_ratio_low, actor.clip_ratio_high), actor.clip_ratio_c
    loss = actor.policy_loss
    if method == "mask_drpo":
        assert loss.delta == 12.5
        return loss.region_delta, loss.ratio_cap
    pair = (loss.delta_low, loss.delta_high)
    return (loss.delta if pair == (None, None) else pair), loss.ratio_cap


def test_the_table_knows_every_experiment_and_method() -> None:
    assert sorted([*SETTINGS, *ON_THE_CPU, *ON_ONE_GPU]) == EXPERIMENTS
    assert set(DPPO_LARGE) == set(METHODS) and len(METHODS) == 26


@pytest.mark.parametrize("method", ["grpo", "grpo_clip_higher"])
@pytest.mark.parametrize("entry_point", ["train", "ppo_trainer"])
def test_clipping_keeps_the_gradient_of_a_bad_token_that_has_become_likelier(method: str, entry_point: str) -> None:
    """In verl's own loss: mu 0.01, pi 0.05 and A -1 make a ratio of 5, where clip_ratio_c=3 would leave no gradient."""
    plus = "+" if entry_point == "ppo_trainer" else ""
    needed = ["actor_rollout_ref.rollout.name=vllm", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"]

    def gradient(*overrides: str) -> float:
        search_path.register()
        with initialize_config_dir(str(CONFIGS), version_base="1.3"):
            config = compose(entry_point, [f"{plus}method={method}", *needed, *overrides])
        log_pi = torch.tensor([[0.05]]).log().requires_grad_()
        loss, _ = compute_policy_loss_vanilla(
            old_log_prob=torch.tensor([[0.01]]).log(), log_prob=log_pi, advantages=torch.tensor([[-1.0]]),
            response_mask=torch.ones(1, 1), config=omega_conf_to_dataclass(config.actor_rollout_ref.actor),
        )  # fmt: skip
        return float(torch.autograd.grad(loss, log_pi)[0])

    assert gradient() == pytest.approx(5.0)
    assert gradient("actor_rollout_ref.actor.clip_ratio_c=3.0") == 0.0  # verl's default: what the test is about


def test_the_names_in_paper_are_those_that_methods_read_and_experiments_set() -> None:
    listed = set(OmegaConf.load(CONFIGS / "train.yaml").paper)
    texts = [path.read_text() for path in (CONFIGS / "method").glob("*.yaml")]
    assert {name for text in texts for name in re.findall(r"\$\{oc\.select:paper\.(\w+),", text)} == listed
    files = [*(CONFIGS / "paper").glob("*.yaml"), *(CONFIGS / "experiment").rglob("*.yaml")]
    assert {name for file in files for name in OmegaConf.load(file).get("paper", {})} == listed


def test_an_unknown_name_in_paper_is_refused() -> None:
    for override in ("paper.tv_dleta=0.1", "+paper.tv_dleta=0.1"):  # + is as in an experiment's file
        with pytest.raises(CompositionError, match=r"paper\.tv_dleta.* Did you mean paper\.tv_delta"):
            compose_run(["experiment=cpu_tiny", override])


def test_paper_is_a_section_and_a_group() -> None:
    def thresholds(*overrides: str) -> tuple[float, float | None]:
        loss = _compose("cpu_tiny", "method=dppo_binary_tv", *overrides).actor_rollout_ref.actor.policy_loss
        return loss.delta, loss.ratio_cap

    assert thresholds() == (0.2, 5.0)
    assert thresholds("paper.tv_delta=0.1", "paper.dppo_ratio_cap=null") == (0.1, None)
    assert thresholds("+paper=drpo") == (0.15, 1e4)
    assert thresholds("+paper=drpo", "actor_rollout_ref.actor.policy_loss.delta=0.5") == (0.5, 1e4)


def test_methods_of_one_loss_mode_have_folders_of_their_own() -> None:
    cispo, pg_tis = (_compose("dppo/qwen3_8b", f"method={method}") for method in ("cispo", "pg_tis"))
    assert cispo.actor_rollout_ref.actor.policy_loss.loss_mode == pg_tis.actor_rollout_ref.actor.policy_loss.loss_mode
    assert (cispo.run.dir, pg_tis.run.dir) == ("outputs/dppo_qwen3_8b-cispo", "outputs/dppo_qwen3_8b-pg_tis")


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_verl_accepts_a_rehearsal(experiment: str) -> None:
    config = _compose(experiment, "rehearsal=cpu")
    validate_config(config, use_reference_policy=False, use_critic=False)
    _mini_batches_are_whole(config)


def _mini_batches_are_whole(config: DictConfig) -> None:
    updates, rest = divmod(config.data.train_batch_size, config.actor_rollout_ref.actor.ppo_mini_batch_size)
    assert (updates, rest) == (config.run.updates_per_rollout, 0)


def test_fp8_end_to_end_is_fp8_in_both() -> None:
    config = _compose("drpo/qwen3_30b_a3b_fp8_e2e")
    megatron, optim = config.actor_rollout_ref.actor.megatron, config.actor_rollout_ref.actor.optim
    assert (megatron.override_transformer_config.fp8, megatron.override_transformer_config.fp8_recipe) == (
        "hybrid", "blockwise",
    )  # fmt: skip
    assert optim.override_optimizer_config.fp8_recipe == "blockwise"
    assert config.ray_kwargs.ray_init.runtime_env.env_vars.NVTE_FP8_BLOCK_SCALING_FP32_SCALES == "1"
    with pytest.raises(ConfigCompositionException, match=r"precision/fp8_e2e/fsdp2"):
        _compose("drpo/qwen3_30b_a3b_bf16", "precision=fp8_e2e")  # verl has no FP8 in FSDP


@pytest.mark.parametrize(
    ("experiment", "backend"),
    [("drpo/qwen3_4b", "fsdp2"), ("drpo/qwen3_30b_a3b_fp8_e2e", "megatron"), ("cpu_tiny", "cpu")],
)
def test_fp16_is_set_where_each_engine_reads_it(experiment: str, backend: str) -> None:
    config = _compose(experiment, "precision=fp16")
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    assert rollout.dtype == "float16" and rollout.quantization is None
    if backend == "megatron":
        assert actor.megatron.dtype == "float16" and "fp8" not in actor.megatron.override_transformer_config
    else:
        assert dict(actor.fsdp_config.mixed_precision) == dict(config.actor_rollout_ref.ref.fsdp_config.mixed_precision)
        assert actor.fsdp_config.mixed_precision.param_dtype == "fp16" and actor.fsdp_config.model_dtype == "fp32"
    assert config.alerts.skipped_updates.metric == "actor/skipped_update_frac"


def test_an_fp32_head_is_one_on_both_sides_and_none_of_megatron() -> None:
    config = _compose("drpo/qwen3_4b", "head=fp32").actor_rollout_ref
    assert config.model.override_config.head_dtype == config.rollout.engine_kwargs.vllm.hf_overrides.head_dtype
    with pytest.raises(ConfigCompositionException, match=r"head/fp32/megatron"):
        _compose("drpo/qwen3_30b_a3b_fp8_e2e", "head=fp32")


def test_every_emulated_format_has_a_group_that_leaves_all_else_in_fp32() -> None:
    for weight_format in EMULATED_FORMATS:
        config = _compose("cpu_tiny", f"precision=cpu_{weight_format}_weights").actor_rollout_ref
        assert config.rollout.engine_kwargs.vllm.quantization == f"{EMULATED}{weight_format}"
        assert (config.rollout.dtype, config.actor.fsdp_config.mixed_precision.param_dtype) == ("float32", "fp32")


def test_router_replay_is_r3_of_verl_beside_the_anchor_of_the_rollout() -> None:
    config = _compose("dppo/qwen3_30b_a3b_base_r3")
    assert config.actor_rollout_ref.actor.megatron.router_replay.mode == "R3"
    assert config.actor_rollout_ref.rollout.enable_rollout_routing_replay is True
    assert _compose("dppo/qwen3_30b_a3b_base").actor_rollout_ref.rollout.enable_rollout_routing_replay is False
    with pytest.raises(ValueError, match=r"R2.*bypass"):
        validate_config(
            _compose("dppo/qwen3_30b_a3b_base_r3", "actor_rollout_ref.actor.megatron.router_replay.mode=R2"),
            use_reference_policy=False, use_critic=False,
        )  # fmt: skip


def test_lora_is_set_for_both_trainers() -> None:
    for trainer in ("fsdp2", "megatron"):
        model = _compose("dppo/lora", f"backend={trainer}").actor_rollout_ref.model
        assert (model.lora_rank, model.lora_alpha, model.lora.rank, model.lora.alpha) == (32, 64, 32, 64)
        assert model.lora.merge is False
        asynchronous = _compose("dppo/lora", f"backend={trainer}", "staleness=separate_async")
        assert asynchronous.actor_rollout_ref.model.lora.merge is True  # else the samplers never see the adapters


def test_a_rehearsal_sends_its_weights_through_shared_memory() -> None:
    config = _compose("dppo/qwen3_8b", "staleness=separate_async", "rehearsal=cpu")
    assert config.actor_rollout_ref.rollout.checkpoint_engine.backend == "shared_file"
    assert config.actor_rollout_ref.hybrid_engine is False
    assert config.trainer.v1.separate_async.parameter_sync_step == 4 == config.data.train_batch_size


# In billions, as the models' cards have it; a public index of their files has 8,190,735,360 for the 8B.
PARAMETERS = {
    "qwen3_4b_base": 4.02, "qwen3_8b_base": 8.19, "qwen3_30b_a3b": 30.5, "qwen3_30b_a3b_base": 30.5,
    "r1d_qwen_1_5b": 1.78, "qwen3_5_35b_a3b_base": 34.7,
}  # fmt: skip


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_fields_of_an_architecture_make_a_model_of_its_size(name: str) -> None:
    fields = OmegaConf.to_container(OmegaConf.load(CONFIGS / "model" / f"{name}.yaml").check.architecture)
    if name == "qwen3_30b_a3b_base":  # what it changes of the other
        fields = {
            **OmegaConf.to_container(OmegaConf.load(CONFIGS / "model" / "qwen3_30b_a3b.yaml").check.architecture),
            **fields,
        }
    text = fields.get("text_config", fields)
    config = AutoConfig.for_model(**text)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert model.num_parameters() / 1e9 == pytest.approx(PARAMETERS[name], rel=5e-3)


def _settings(file: Path) -> dict[str, Any]:
    """What a group's file sets, by full names."""

    def leaves(node: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict) and value:
                yield from leaves(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return {
        name: value for name, value in leaves(OmegaConf.to_container(OmegaConf.load(file)), "") if name != "defaults"
    }


def test_methods_and_experiments_meet_in_the_thresholds_of_paper_alone() -> None:
    """Why a method that reads none of them needs no composition with each experiment."""
    own = [CONFIGS / group for group in ("method", "anchor")]
    methods, anchors = ({file.stem: _settings(file) for file in (CONFIGS / group).glob("*.yaml")}
                        for group in ("method", "anchor"))  # fmt: skip
    # No other group sets what a method sets, but for one experiment that has the last word, whatever the method.
    of_methods = {name for file in (*methods.values(), *anchors.values()) for name in file}
    shared = {
        (str(file.relative_to(CONFIGS)), name)
        for file in CONFIGS.rglob("*.yaml") if file.parent not in own
        for name in _settings(file)
        if any(f"{name}.".startswith(f"{each}.") or f"{each}.".startswith(f"{name}.") for each in of_methods)
    }  # fmt: skip
    assert shared == {("experiment/dppo/verl_script.yaml", "actor_rollout_ref.actor.loss_agg_mode")}

    def references(settings: dict[str, Any]) -> set[str]:
        texts = [value for value in settings.values() if isinstance(value, str)]
        return {name for text in texts for name in re.findall(r"[\w.]+\.\w+", text) if "${" in text} - {"oc.select"}

    # Anchors, which methods with thresholds of their own share with the others, read what is no method's.
    read = set().union(*map(references, anchors.values())) - of_methods
    assert read == {"run.anchor_in_actor", "trainer.v1.trainer_mode", "data.max_response_length"}
    anchor = {name: OmegaConf.load(CONFIGS / "method" / f"{name}.yaml").defaults for name in METHODS}
    assert all(len(each) == 1 for each in anchor.values())
    beside_the_loss = {"run.method"} | {
        f"actor_rollout_ref.actor.clip_ratio{end}" for end in ("", "_low", "_high", "_c")
    }
    for name in set(METHODS) - set(DEPENDENT):
        assert references(methods[name]) <= of_methods
        assert anchor[name] in [anchor[each] for each in DEPENDENT]
        assert {each for each in methods[name] if ".policy_loss." not in each} <= beside_the_loss


@pytest.mark.parametrize(("experiment", "method"), _pairs())
def test_an_experiment_passes_the_check_with_a_method(experiment: str, method: str) -> None:
    config = compose_run([f"experiment={experiment}", f"method={method}"])
    run = RunConfig(config)
    findings = summarise(run, check_run(run)).findings
    assert not [str(each) for each in findings if each.level == "error"]
    assert not [str(each) for each in findings if each.setting.startswith("rule ") or each.rule == "summary"]  # failed
    # What a GPU would answer with a crash, an hour later, when the weights are there.
    assert not [str(each) for each in findings if each.rule in ("fp8", "memory") and each.level != "note"]

    assert config.run.method == method  # else two methods would resume each other's checkpoints
    _mini_batches_are_whole(config)
    if experiment in THRESHOLDS:
        assert _thresholds(config, method) == THRESHOLDS[experiment][method]
    actor, rollout = config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    if actor.loss_agg_mode == "seq-mean-token-sum-norm":
        assert actor.loss_scale_factor == config.data.max_response_length
    assert (rollout.temperature, rollout.top_p, rollout.top_k) == (1.0, 1.0, -1)
    assert config.algorithm.rollout_correction.bypass_mode
    assert (config.actor_rollout_ref.actor.policy_loss.anchor == "recomputed") is (method in DECOUPLED)
    assert config.algorithm.norm_adv_by_std_in_grpo is False
    if not method.startswith("grpo"):  # PPO's fields are verl's, untouched: no threshold hides there
        assert (actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c) == (0.2, 0.2, 3.0)


# From here on over the slim copy.


@pytest.mark.parametrize("experiment", SETTINGS)
def test_an_experiment_means_what_the_paper_does(experiment: str, slim: None) -> None:
    config, setting = _compose(experiment), SETTINGS[experiment]
    data, actor, rollout = config.data, config.actor_rollout_ref.actor, config.actor_rollout_ref.rollout
    found = Setting(
        model=config.actor_rollout_ref.model.path, prompts=data.train_batch_size, mini_batch=actor.ppo_mini_batch_size,
        n=rollout.n, prompt=data.max_prompt_length, response=data.max_response_length,
        evaluation=(rollout.val_kwargs.n, rollout.val_kwargs.temperature, rollout.val_kwargs.top_p),
        lr=actor.optim.lr, quantization=rollout.quantization, trainer=actor.strategy, aggregation=actor.loss_agg_mode,
        data=Path(data.train_files).parent.name,
    )  # fmt: skip
    assert found == setting
    assert rollout.val_kwargs.do_sample is (setting.evaluation[1] > 0) and rollout.val_kwargs.top_k == -1
    assert Path(data.val_files).parts[-2:] == ("aime", "test.parquet")
    assert rollout.max_model_len == data.max_prompt_length + data.max_response_length
    assert actor.ppo_max_token_len_per_gpu >= rollout.max_model_len
    optim = actor.optim
    assert (optim.weight_decay, list(optim.betas), optim.clip_grad) == (0.01, [0.9, 0.999], 1.0)
    assert (optim.get("lr_scheduler_type") or optim.lr_decay_style) == "constant"
    assert (actor.use_kl_loss, actor.entropy_coeff, config.algorithm.use_kl_in_reward) == (False, 0, False)
    assert config.check.gpu_memory_gib == 80 and config.trainer.n_gpus_per_node == 8
    assert config.trainer.device == "cuda" and config.run.stall_seconds >= 3600


@pytest.mark.parametrize("experiment", [*SETTINGS, "cpu_tiny"])
@pytest.mark.parametrize("staleness", ["colocate_async", "separate_async"])
def test_an_experiment_can_be_asynchronous(experiment: str, staleness: str, slim: None) -> None:
    config = _compose(experiment, f"staleness={staleness}")
    validate_config(config, use_reference_policy=False, use_critic=False)
    if staleness == "separate_async":  # verl's own condition, and its trainer's
        period = config.trainer.v1.separate_async.parameter_sync_step
        assert config.data.train_batch_size == period * config.actor_rollout_ref.actor.ppo_mini_batch_size
        assert config.actor_rollout_ref.rollout.nnodes > 0
        assert config.actor_rollout_ref.rollout.checkpoint_engine.backend != "naive"
    if experiment in ("cpu_tiny", "drpo/qwen3_4b", "dppo/verl_script"):  # of each backend one
        for overrides in (["method=dppo_topk_tv"], ["anchor=recomputed"]):
            validate_or_raise(_compose(experiment, f"staleness={staleness}", *overrides))


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_a_rehearsal_is_small_and_keeps_what_the_experiment_is_about(experiment: str, slim: None) -> None:
    def about(config: DictConfig) -> dict[str, Any]:
        actor = config.actor_rollout_ref.actor
        return {
            "loss": {name: value for name, value in actor.policy_loss.items() if name != "rollout_correction"},
            "clipping": (actor.clip_ratio_low, actor.clip_ratio_high, actor.clip_ratio_c),
            "anchor": config.algorithm.rollout_correction.bypass_mode,
            "aggregation": actor.loss_agg_mode,
            "updates": config.data.train_batch_size // actor.ppo_mini_batch_size,
            "mode": config.trainer.v1.trainer_mode,
            "lora": (config.actor_rollout_ref.model.lora_rank, config.actor_rollout_ref.model.lora_alpha),
            "top_k": OmegaConf.select(config, "actor_rollout_ref.rollout.custom.drpo_verl.top_k"),
        }

    for overrides in (["method=dppo_topk_tv"], ["method=grpo_clip_higher", "staleness=colocate_async"]):
        real = _compose(experiment, *overrides)
        rehearsal = _compose(experiment, *overrides, "rehearsal=cpu")
        assert about(rehearsal) == about(real)
        validate_or_raise(rehearsal)
        assert rehearsal.trainer.device == "cpu" and rehearsal.actor_rollout_ref.actor.strategy == "fsdp2"
        assert rehearsal.prepare.policy is not None and rehearsal.prepare.data is not None
        assert rehearsal.data.train_batch_size * rehearsal.actor_rollout_ref.rollout.n <= 32
        assert rehearsal.actor_rollout_ref.rollout.quantization is None
        assert rehearsal.actor_rollout_ref.rollout.tensor_model_parallel_size == 1
        assert rehearsal.actor_rollout_ref.actor.loss_scale_factor in (6, None)
        assert rehearsal.trainer.total_training_steps == 2
    fp8 = "fp8" in experiment
    assert rehearsal.actor_rollout_ref.rollout.engine_kwargs.vllm.get("kv_cache_dtype") == ("fp8_e4m3" if fp8 else None)


def test_the_slim_copy_makes_no_difference(slim: None) -> None:
    choice = ("drpo/qwen3_30b_a3b_fp8_e2e", "method=dppo_binary_tv")
    ours = _compose(*choice)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_path, "verl_config_dir", lambda: VERL)
        full = _compose(*choice)
    assert ours == _without_the_rest(full)


def test_another_tiny_policy_is_one_override() -> None:
    config = _compose("cpu_tiny", "model=tiny_long_tail")
    validate_or_raise(config)
    assert isinstance(instantiate(config.prepare.policy.recipe), LongTailRecipe)
    assert config.actor_rollout_ref.rollout.max_model_len == 32  # as model=tiny has it
