"""verl's own merger makes a Hugging Face folder of what its FSDP actor saves."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3ForCausalLM

from drpo_verl.errors import UserError
from drpo_verl.models.checkpoints import as_hugging_face
from drpo_verl.models.resolve import resolve
from drpo_verl.models.tiny_model import TinyPolicyRecipe, build_model, build_tokenizer


@pytest.fixture
def checkpoint(tmp_path: Path) -> tuple[Path, Qwen3ForCausalLM]:
    """A checkpoint as verl's FSDP actor saves it on one rank, and its model."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model = build_model(replace(TinyPolicyRecipe(), hidden_size=32, intermediate_size=32, num_layers=1), tokenizer)
    actor = tmp_path / "checkpoints" / "global_step_10" / "actor"
    for saved in (model.config, model.generation_config, tokenizer):
        saved.save_pretrained(actor / "huggingface")
    (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
    torch.save(model.state_dict(), actor / "model_world_size_1_rank_0.pt")
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("10")
    return actor, model


def test_shards_are_merged_once(checkpoint: tuple[Path, Qwen3ForCausalLM]) -> None:
    actor, model = checkpoint
    run = actor.parents[2]
    merged = Path(resolve(str(run)))
    assert merged.parent == actor
    loaded = AutoModelForCausalLM.from_pretrained(merged, dtype=torch.float32)
    for name, parameter in model.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], parameter.bfloat16().float(), rtol=0, atol=0)
    assert AutoTokenizer.from_pretrained(merged).chat_template
    before = (merged / "model.safetensors").stat().st_mtime_ns
    assert resolve(str(run)) == str(merged)
    assert (merged / "model.safetensors").stat().st_mtime_ns == before


def test_shards_that_are_broken(checkpoint: tuple[Path, Qwen3ForCausalLM]) -> None:
    actor = checkpoint[0]
    torch.save({"no": "model"}, actor / "model_world_size_1_rank_0.pt")
    with pytest.raises(UserError, match=r"verl\.model_merger could not merge .*global_step_10/actor: "):
        as_hugging_face(actor)
    assert not list(actor.glob("merged-*"))
