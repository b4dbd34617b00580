"""Ranks of verl's actor with its Megatron engine on a CPU, outside Ray: for ranks.py.

A case has an experiment, a method, a list of settings, and whether a row is spoilt.

Everything from the experiment's configuration to the metrics is verl's own, megatron-core's or this package's: the
training worker, the engine's batching, packing, forward step and logits processor, Megatron's groups, schedule and
vocabulary-parallel layers, and in fp16 its optimiser with the loss scale. What verl takes from packages that need a GPU
is not there: the model is not converted by Megatron-Bridge but made here, a GPTModel without attention (Megatron's own
for packed sequences is Transformer Engine's), gradients are not reduced, and an optimiser is there in fp16 only.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import verl.workers.engine_workers  # noqa: F401  imported once, before there are ranks
from actor_rank import fixed_batch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.fusions.fused_bias_dropout import get_bias_dropout_add
from megatron.core.models.gpt import GPTModel
from megatron.core.tensor_parallel.layers import ColumnParallelLinear, RowParallelLinear
from megatron.core.transformer import ModuleSpec, TransformerConfig, TransformerLayer, TransformerLayerSubmodules
from megatron.core.transformer.mlp import MLP, MLPSubmodules
from megatron.core.transformer.module import Float16Module
from megatron.core.transformer.torch_norm import WrappedTorchNorm
from omegaconf import DictConfig, open_dict
from tensordict import TensorDict
from torch import Tensor
from torch.overrides import TorchFunctionMode
from verl.utils import tensordict_utils
from verl.workers.engine import EngineRegistry
from verl.workers.engine.megatron import transformer_impl
from verl.workers.engine.megatron.transformer_impl import MegatronEngineWithLMHead

from benchmarks.actor import batch, configuration
from benchmarks.actor import worker as actor
from drpo_verl.adapters import anchor
from drpo_verl.adapters.top_k import DIVERGENCE, IDS, TopKError, divergence_from_logits
from drpo_verl.losses.partition import kullback_leibler, total_variation

if TYPE_CHECKING:
    from ranks import Group

SAMPLES, UPDATE = 11, 5
PADDED_VOCABULARY = 24
"""Of 19 tokens: the columns beyond have logits like any other, and a share in the normaliser."""


# It seeds CUDA's generators for Megatron wherever the platform counts devices, and ours counts the CPU.
transformer_impl.set_random_seed = torch.manual_seed


class CudaIsTheCpu(TorchFunctionMode):
    """Megatron counts tokens and keeps its loss scale on the device "cuda", and asks parameters for types of that."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        result = func(*args, **kwargs)
        return result.replace("torch.", "torch.cuda.") if func is torch.Tensor.type and len(args) == 1 else result


@EngineRegistry.register(model_type="language_model", backend="megatron", device="cpu")
class MegatronEngineOnCPU(MegatronEngineWithLMHead):
    """verl's, with a model that a CPU can run, and an optimiser where there is a loss scale: in fp16."""

    optimizer: Any = None

    def initialize(self) -> None:
        torch.manual_seed(0)  # Megatron makes the whole weight on every rank, and then takes the rank's part
        fp16 = self.engine_config.dtype == "float16"
        self.param_dtype = torch.float16 if fp16 else torch.float32
        self.tf_config = TransformerConfig(
            num_layers=1, hidden_size=16, num_attention_heads=2, ffn_hidden_size=32, init_method_std=0.5,
            tensor_model_parallel_size=self.engine_config.tensor_model_parallel_size,
            context_parallel_size=self.engine_config.context_parallel_size,
            use_cpu_initialization=True, hidden_dropout=0.0, fp16=fp16,
        )  # fmt: skip
        mlp = ModuleSpec(MLP, submodules=MLPSubmodules(linear_fc1=ColumnParallelLinear, linear_fc2=RowParallelLinear))
        layer = ModuleSpec(
            TransformerLayer,
            submodules=TransformerLayerSubmodules(
                pre_mlp_layernorm=WrappedTorchNorm, mlp=mlp, mlp_bda=get_bias_dropout_add
            ),
        )
        model = GPTModel(
            self.tf_config, layer, vocab_size=PADDED_VOCABULARY, max_sequence_length=64, position_embedding_type="none"
        )
        # As the experiment has it, for the packing: no FP8 is computed with.
        model.config.fp8 = self.engine_config.override_transformer_config.get("fp8")
        self.module = [Float16Module(self.tf_config, model) if fp16 else model]
        if fp16:
            self.module[0].ddp_config = DistributedDataParallelConfig()  # of no gradient that is reduced
            with CudaIsTheCpu():
                self.optimizer = self._build_optimizer()
            self.tf_config.finalize_model_grads_func = None

    def forward_backward_batch(self, *args: Any, **kwargs: Any) -> Any:
        with CudaIsTheCpu():
            return super().forward_backward_batch(*args, **kwargs)

    def optimizer_zero_grad(self) -> None:
        self.module[0].zero_grad()

    def optimizer_step(self) -> float:
        if self.optimizer is None:
            gradients = [parameter.grad for parameter in self.module[0].parameters()]
            return float(torch.stack([gradient.norm() for gradient in gradients if gradient is not None]).norm())
        with CudaIsTheCpu():
            return float(super().optimizer_step())

    def lr_scheduler_step(self) -> float:
        return 0.0


class Recorded:
    """The loss as the worker has it; keeps what the engine hands it of each sample."""

    def __init__(self, loss: Any) -> None:
        self._loss = loss
        self.samples: dict[str, dict[str, list[float]]] = {}

    def __call__(
        self, model_output: dict[str, Tensor] | None = None, data: TensorDict | None = None, **more: Any
    ) -> Any:
        assert data is not None
        if model_output is not None:
            self.keep(data, model_output)
        return self._loss(model_output=model_output, data=data, **more)

    def keep(self, data: TensorDict, outputs: dict[str, Tensor]) -> None:
        """Keep nested outputs, by the tokens of their samples: of each sample, those that predict its response."""
        for i, tokens in enumerate(data["input_ids"].unbind()):
            prompt, response = (len(data[name].unbind()[i]) for name in ("prompts", "responses"))
            self.samples[str(tokens.tolist())] = {
                name: each.unbind()[i][prompt - 1 : prompt + response - 1].tolist() for name, each in outputs.items()
            }


def expected(logits: Tensor, data: TensorDict) -> dict[str, Tensor]:
    """What whole logits, ``[1, tokens, V]``, say of tokens that lie one after the other."""
    offsets = data["input_ids"].offsets()
    next_token = data["input_ids"].values().roll(-1)
    found = {
        "log_probs": logits[0].log_softmax(-1).gather(1, next_token.unsqueeze(1)).squeeze(1),
        "tv": divergence_from_logits(logits, data, total_variation)[DIVERGENCE][0],
        "kl": divergence_from_logits(logits, data, kullback_leibler)[DIVERGENCE][0],
    }
    return {name: torch.nested.nested_tensor_from_jagged(each, offsets=offsets) for name, each in found.items()}


def recomputed(engine: Any, data: TensorDict) -> dict[str, list[float]]:
    """log pi_old of the responses of two mini-batches, by the tokens of their samples; NaN for those of the first."""
    anchor.recompute(engine, data, updates_since_sync=0)
    return {
        str(tokens.tolist()): log_pi_old.tolist()
        for tokens, log_pi_old in zip(data["input_ids"].unbind(), data[anchor.LOG_PROBS].unbind(), strict=True)
    }


def train(config: DictConfig, spoilt: bool) -> dict[str, Any]:
    """One mini-batch of a fresh actor: its metrics, and what its loss was given of each sample."""
    worker = actor(config).actor
    vocabulary = worker.model_config.hf_config.vocab_size
    rows = fixed_batch(vocabulary, top_k=min(config.actor_rollout_ref.actor.policy_loss.top_k, 8))
    data = batch(rows[:SAMPLES], samples_per_update=SAMPLES)
    if spoilt:
        prompt = len(data["prompts"].unbind()[0])
        data[IDS].values()[prompt - 1, 0] = (data["responses"].values()[0] + 1) % vocabulary
    anchors = recomputed(worker.engine, batch(rows[: 2 * UPDATE], samples_per_update=UPDATE))
    worker.loss_fn = recorded = Recorded(worker.loss_fn)
    whole = Recorded(None)
    if torch.distributed.get_world_size() == 1:
        # One rank pads nothing: these are the logits of the tokens one after the other.
        processor = worker.engine._lm_head_logits_processor

        def observed(logits: Tensor, *args: Any, batch: TensorDict, **kwargs: Any) -> Any:
            whole.keep(batch, expected(logits.detach().clone(), batch))
            return processor(logits, *args, batch=batch, **kwargs)

        worker.engine._lm_head_logits_processor = observed
    before = [parameter.detach().clone() for parameter in worker.engine.module[0].parameters()]
    try:
        output = worker.train_mini_batch(data)
    except TopKError as error:
        return {"error": str(error)}
    after = worker.engine.module[0].parameters()
    metrics = {} if output is None else tensordict_utils.get(output, "metrics")
    return {
        "metrics": {name: value for name, value in metrics.items() if "perf/" not in name},
        "moved": any(not torch.equal(old, new) for old, new in zip(before, after, strict=True)),
        "samples": recorded.samples,
        "expected": whole.samples,
        "anchors": anchors,
    }


def prepare(cases: dict[str, dict[str, Any]]) -> dict[tuple[str, str], DictConfig]:
    """Compose the configuration of each experiment with each method."""
    return {
        (experiment, method): configuration(
            "actor_rollout_ref.rollout.n=1", "run.offload=false",
            "actor_rollout_ref.actor.megatron.expert_model_parallel_size=1",
            "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=40", f"method={method}", experiment=experiment,
        )
        for experiment, method in {(case["experiment"], case["method"]) for case in cases.values()}
    }  # fmt: skip


def main(group: Group, configurations: dict[tuple[str, str], DictConfig]) -> None:
    """Train each case of the group, and write what came of it on this rank."""
    results = {}
    for name, case in group.cases.items():
        config = copy.deepcopy(configurations[case["experiment"], case["method"]])
        with open_dict(config):
            config.merge_with_dotlist([f"actor_rollout_ref.model.path={group.model}", *case["settings"]])
        results[name] = train(config, case["spoilt"])
        parallel_state.destroy_model_parallel()
    rank = torch.distributed.get_rank()
    Path(group.folder, f"{rank}.json").write_text(json.dumps(results, default=float))
    torch.distributed.destroy_process_group()
