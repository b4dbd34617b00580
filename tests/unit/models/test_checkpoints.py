"""Which folder of a run is meant."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from drpo_verl.errors import UserError
from drpo_verl.models.checkpoints import as_hugging_face, find_actor
from drpo_verl.models.resolve import resolve


@pytest.fixture
def run(tmp_path: Path) -> tuple[Path, LlamaForCausalLM]:
    """A run's folder with two checkpoints as verl's FSDP actor saves them on one rank, the newer one of a model."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(vocab_size=20, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    )
    for step in (5, 10):
        actor = tmp_path / "checkpoints" / f"global_step_{step}" / "actor"
        (actor / "huggingface").mkdir(parents=True)
        model.config.architectures = ["LlamaForCausalLM"]
        model.config.save_pretrained(actor / "huggingface")
        (actor / "fsdp_config.json").write_text(json.dumps({"FSDP_version": 2, "world_size": 1}))
        torch.save(model.state_dict(), actor / "model_world_size_1_rank_0.pt")
    (tmp_path / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("10")
    return tmp_path, model


def test_the_actor_is_found_from_anywhere(run: tuple[Path, LlamaForCausalLM]) -> None:
    folder = run[0]
    newest = folder / "checkpoints" / "global_step_10" / "actor"
    for start in (folder, folder / "checkpoints", newest.parent, newest):
        assert find_actor(start) == newest
    assert find_actor(folder / "checkpoints" / "global_step_5").parent.name == "global_step_5"  # type: ignore[union-attr]
    (folder / "checkpoints" / "latest_checkpointed_iteration.txt").write_text("5")  # 10 is still being written
    assert find_actor(folder).parent.name == "global_step_5"  # type: ignore[union-attr]
    assert find_actor(folder / "checkpoints" / "nothing") is None


def test_weights_that_are_there_are_taken(run: tuple[Path, LlamaForCausalLM]) -> None:
    folder, model = run
    ready = folder / "checkpoints" / "global_step_10" / "actor" / "huggingface"
    model.save_pretrained(ready)
    assert resolve(str(folder)) == str(ready)


def test_a_checkpoint_of_something_else(run: tuple[Path, LlamaForCausalLM]) -> None:
    actor = run[0] / "checkpoints" / "global_step_10" / "actor"
    (actor / "model_world_size_1_rank_0.pt").unlink()
    with pytest.raises(UserError, match=r"nor an FSDP checkpoint. A Megatron one is merged by"):
        as_hugging_face(actor)
