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
    for name in ("model_world_size_1_rank_0.pt", "fsdp_config.json"):
        (actor / name).unlink()
    with pytest.raises(UserError, match=r"nor an FSDP checkpoint. A Megatron one is merged by"):
        as_hugging_face(actor)
    (actor / "huggingface" / "config.json").unlink()  # Megatron's is elsewhere
    with pytest.raises(UserError, match=r"nor an FSDP checkpoint. A Megatron one is merged by"):
        resolve(str(run[0]))


def test_a_note_that_is_of_no_use_is_named_with_the_step_that_is_taken(
    run: tuple[Path, LlamaForCausalLM], caplog: pytest.LogCaptureFixture
) -> None:
    folder = run[0]
    note = folder / "checkpoints" / "latest_checkpointed_iteration.txt"
    for content, said in (
        (b"", f"{note.name} is empty"), (b"x\xff", "which is no step"), (b"99", "names step 99, which is not there"),
        (None, f"{note.name} is missing"),
    ):  # fmt: skip
        caplog.clear()
        note.unlink() if content is None else note.write_bytes(content)
        assert find_actor(folder).parent.name == "global_step_10"  # type: ignore[union-attr]
        assert said in caplog.text and "The weights are those of global_step_10." in caplog.text


def test_weights_that_are_half_written_are_never_taken(
    run: tuple[Path, LlamaForCausalLM], caplog: pytest.LogCaptureFixture
) -> None:
    folder, model = run
    five, ten = (folder / "checkpoints" / f"global_step_{step}" / "actor" for step in (5, 10))
    shard = ten / "model_world_size_1_rank_0.pt"
    shard.write_bytes(shard.read_bytes()[:-1])
    assert find_actor(folder) == five  # though the note names the other
    assert "global_step_10 is not whole: actor/model_world_size_1_rank_0.pt is cut short" in caplog.text
    with pytest.raises(UserError, match=r"global_step_10/actor is not whole.*rank_0\.pt is cut short"):
        as_hugging_face(ten)
    shard.rename(ten / "model_world_size_2_rank_0.pt")
    with pytest.raises(UserError, match=r"model_world_size_2_rank_0\.pt is cut short"):
        resolve(str(ten.parent))
    (five / "huggingface" / "config.json").unlink()  # saved after the shards
    with pytest.raises(UserError, match=r"has no step with whole weights: of global_step_10, actor/model_world"):
        resolve(str(folder))
    model.save_pretrained(five / "huggingface")
    assert resolve(str(folder)) == str(five / "huggingface")
    weights = five / "huggingface" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UserError, match=r"huggingface/model\.safetensors is cut short"):
        resolve(str(five))


def test_a_copy_beside_the_steps_is_none_of_them(run: tuple[Path, LlamaForCausalLM]) -> None:
    checkpoints = run[0] / "checkpoints"
    (checkpoints / "global_step_10").rename(checkpoints / "global_step_10.old")
    assert find_actor(checkpoints).parent.name == "global_step_5"  # type: ignore[union-attr]
