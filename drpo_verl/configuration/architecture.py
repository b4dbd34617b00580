"""A model's sizes, from the fields of its ``config.json``: no weights, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_FULL_ATTENTION = "full_attention"
_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")


@dataclass(frozen=True)
class Parameters:
    """How many, by what becomes of them when a model is split.

    Args:
        embedding: of the input embedding.
        head: of the output projection; 0 where it is the embedding.
        experts: of all experts of all layers.
        other: of everything else.
        exact: counted from transformers' own model, and not by a formula for models like Llama and Qwen.
    """

    embedding: int
    head: int
    experts: int
    other: int
    exact: bool

    @property
    def total(self) -> int:
        """All of them."""
        return self.embedding + self.head + self.experts + self.other


@dataclass(frozen=True)
class Architecture:
    """A causal language model.

    Args:
        fields: of its configuration, those of the text model where it has several.
        parameters: how many.
    """

    fields: Mapping[str, Any]
    parameters: Parameters

    def _whole(self, *names: str, default: int = 0) -> int:
        for name in names:
            value = self.fields.get(name)
            if isinstance(value, int) and not isinstance(value, bool):
                return value
        return default

    @property
    def layers(self) -> int:
        """Decoder layers."""
        return self._whole("num_hidden_layers")

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return self._whole("hidden_size")

    @property
    def vocabulary(self) -> int:
        """Tokens."""
        return self._whole("vocab_size")

    @property
    def heads(self) -> int:
        """Query heads."""
        return self._whole("num_attention_heads")

    @property
    def kv_heads(self) -> int:
        """Key and value heads."""
        return self._whole("num_key_value_heads", default=self.heads)

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self._whole("head_dim", default=self.hidden // max(1, self.heads))

    @property
    def attention_layers(self) -> int:
        """Layers with a KV cache that grows with the context (hybrid models have others)."""
        types = self.fields.get("layer_types")
        if types:
            return sum(each == _FULL_ATTENTION for each in types)
        return self.layers // max(1, self._whole("full_attention_interval", default=1))  # Qwen's hybrids

    @property
    def intermediate(self) -> int:
        """Width of a dense layer's MLP."""
        return self._whole("intermediate_size", "moe_intermediate_size")

    @property
    def experts(self) -> int:
        """Routed experts of a layer; 0 for a dense model."""
        return self._whole(*_EXPERTS)

    @property
    def expert_intermediate(self) -> int:
        """Width of an expert."""
        return self._whole("moe_intermediate_size", "intermediate_size")

    @property
    def active_intermediate(self) -> int:
        """Width of all MLPs that a token goes through in one layer."""
        if not self.experts:
            return self.intermediate
        return self._whole("num_experts_per_tok") * self.expert_intermediate + self._whole(
            "shared_expert_intermediate_size"
        )

    @property
    def max_positions(self) -> int | None:
        """``max_position_embeddings``: the longest context it takes."""
        return self._whole("max_position_embeddings") or None


def read_architecture(fields: Mapping[str, Any] | None, path: str | None) -> Architecture | None:
    """The architecture that a run names, or of a local model folder.

    Args:
        fields: those of the model's ``config.json``, as ``check.architecture`` has them; None to read the folder's.
        path: of the model; a name on the hub is not looked up.
    """
    if not fields:
        file = Path(path).expanduser() / "config.json" if path else None
        if file is None or not file.is_file():
            return None
        fields = json.loads(file.read_text())
    assert fields is not None
    text = fields.get("text_config") or fields
    tied = bool(text.get("tie_word_embeddings", fields.get("tie_word_embeddings", False)))
    return Architecture(text, _count(json.dumps({**text, "tie_word_embeddings": tied}, sort_keys=True, default=str)))


@lru_cache(maxsize=8)
def _count(text: str) -> Parameters:
    fields = json.loads(text)
    try:
        return _count_exactly(fields)
    except (
        Exception
    ):  # a model that transformers does not know, or knows under other fields: the formula is what is left
        return _count_by_formula(fields)


def _count_exactly(fields: Mapping[str, Any]) -> Parameters:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {key: value for key, value in fields.items() if key != "model_type"}
    config = AutoConfig.for_model(fields["model_type"], **settings)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    embedding = model.get_input_embeddings().weight.numel()
    head = model.get_output_embeddings().weight.numel()
    tied = fields["tie_word_embeddings"]
    sizes = {name: each.numel() for name, each in model.named_parameters(remove_duplicate=False)}
    experts = sum(size for name, size in sizes.items() if ".experts." in name)
    other = sum(sizes.values()) - experts - embedding - head
    return Parameters(embedding, 0 if tied else head, experts, other, exact=True)


def _count_by_formula(fields: Mapping[str, Any]) -> Parameters:
    model = Architecture(fields, Parameters(0, 0, 0, 0, exact=False))
    query, key = model.heads * model.head_dim, model.kv_heads * model.head_dim
    attention = 2 * model.hidden * (query + key)
    routed = 3 * model.hidden * model.expert_intermediate * model.experts
    shared = 3 * model.hidden * int(fields.get("shared_expert_intermediate_size") or 0)
    mlp = model.hidden * model.experts + shared if model.experts else 3 * model.hidden * model.intermediate
    embedding = model.vocabulary * model.hidden
    return Parameters(
        embedding=embedding,
        head=0 if fields["tie_word_embeddings"] else embedding,
        experts=model.layers * routed,
        other=model.layers * (attention + mlp + 2 * model.hidden) + model.hidden,
        exact=False,
    )
