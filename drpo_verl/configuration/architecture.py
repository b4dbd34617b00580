"""A model's sizes, from the fields of its ``config.json``: no weights, no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Parameters:
    """How many parameters a model has, by what becomes of them when it is split.

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
    """The sizes of a causal language model; 0 where its configuration does not have one.

    Args:
        parameters: how many it has.
        layers: decoder layers.
        attention_layers: layers with a KV cache that grows with the context (hybrid models have others).
        hidden: width of the residual stream.
        vocabulary: tokens.
        heads: query heads.
        kv_heads: key and value heads.
        head_dim: width of a head.
        intermediate: width of a dense layer's MLP.
        experts: routed experts of a layer; 0 for a dense model.
        expert_intermediate: width of an expert.
        active_intermediate: width of all MLPs that a token goes through in one layer.
        max_positions: the longest context that it takes, in tokens; None when that is not known.
        kind: the name that transformers has for models like it, ``model_type``; empty when that is not known.
    """

    parameters: Parameters
    layers: int
    attention_layers: int
    hidden: int
    vocabulary: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    experts: int
    expert_intermediate: int
    active_intermediate: int
    max_positions: int | None
    kind: str = ""


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
    model = _sizes(text)
    count = _count(json.dumps({**text, "tie_word_embeddings": tied}, sort_keys=True, default=str))
    return replace(model, parameters=count)


def _sizes(fields: Mapping[str, Any]) -> Architecture:
    """The sizes that a configuration names; its parameters are still to be counted."""

    def whole(*names: str, default: int = 0) -> int:
        values = (fields.get(name) for name in names)
        return next((each for each in values if isinstance(each, int) and not isinstance(each, bool)), default)

    layers, hidden, heads = (whole(name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    attention_layers = layers // max(1, whole("full_attention_interval", default=1))  # Qwen's hybrids
    if fields.get("layer_types"):
        attention_layers = list(fields["layer_types"]).count("full_attention")
    dense, expert = "intermediate_size", "moe_intermediate_size"
    experts, active = whole("num_experts", "num_local_experts", "n_routed_experts"), whole("num_experts_per_tok")
    shared = whole("shared_expert_intermediate_size")
    return Architecture(
        parameters=Parameters(0, 0, 0, 0, exact=False),
        layers=layers,
        attention_layers=attention_layers,
        hidden=hidden,
        vocabulary=whole("vocab_size"),
        heads=heads,
        kv_heads=whole("num_key_value_heads", default=heads),
        head_dim=whole("head_dim", default=hidden // max(1, heads)),
        intermediate=whole(dense, expert),
        experts=experts,
        expert_intermediate=whole(expert, dense),
        active_intermediate=active * whole(expert, dense) + shared if experts else whole(dense, expert),
        max_positions=whole("max_position_embeddings") or None,
        kind=str(fields.get("model_type") or ""),
    )


@lru_cache(maxsize=8)
def _count(text: str) -> Parameters:
    fields = json.loads(text)
    try:
        return _count_exactly(fields)
    except Exception:  # a model that transformers does not know, or knows under other fields
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
    model = _sizes(fields)
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
