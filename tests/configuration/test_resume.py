"""What a run goes on from: the check says beforehand where verl would fail, or begin anew without a word."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from configurations import CPU, DENSE, findings, findings_after

from drpo_verl.configuration.finding import Finding


def checkpoint(folder: Path, step: int, *, world: int = 8) -> Path:
    """A finished checkpoint of a step, of FSDP, as far as its names go."""
    actor = folder / f"global_step_{step}" / "actor"
    actor.mkdir(parents=True)
    for part in ("model", "optim", "extra_state"):
        for rank in range(world):
            (actor / f"{part}_world_size_{world}_rank_{rank}.pt").write_text("shard")
    (actor.parent / "data.pt").touch()
    return actor.parent


def note(folder: Path, text: str) -> None:
    (folder / "latest_checkpointed_iteration.txt").write_text(text)


def found(base: tuple[str, ...], *overrides: str) -> list[Finding]:
    return [each for each in findings(base, *overrides) if each.rule == "resume"]


def mended(base: tuple[str, ...], overrides: list[str], finding: Finding) -> None:
    assert finding.overrides
    for remedy in finding.overrides:
        after = findings_after(base, overrides, remedy, "resume")
        assert not [str(each) for each in after if each.level == "error"], remedy


def test_a_run_of_its_own_goes_on(tmp_path: Path) -> None:
    own = f"trainer.default_local_dir={tmp_path}"
    assert not found(DENSE, own)
    checkpoint(tmp_path, 20)
    checkpoint(tmp_path, 40)
    note(tmp_path, "40")
    assert not found(DENSE, own)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"has checkpoints and no latest_checkpointed_iteration\.txt"),
        ("", r"has '' in its latest_checkpointed_iteration\.txt, which is no step"),
        ("forty", r"has 'forty' in its"),
        ("60", r"has no global_step_60, which its latest_checkpointed_iteration\.txt names"),
    ],
)
def test_a_note_that_does_not_fit(tmp_path: Path, text: str | None, message: str) -> None:
    whole = checkpoint(tmp_path, 20)
    (tmp_path / "global_step_40" / "actor").mkdir(parents=True)  # half-written
    if text is not None:
        note(tmp_path, text)
    own = [f"trainer.default_local_dir={tmp_path}"]
    (finding,) = found(DENSE, *own)
    assert finding.level == "error" and re.search(message, str(finding)), str(finding)
    assert finding.overrides[0] == f"trainer.resume_mode=resume_path trainer.resume_from_path={whole}"
    mended(DENSE, own, finding)


@pytest.mark.parametrize("total", [40, 30])
def test_nothing_is_left_to_train(tmp_path: Path, total: int) -> None:
    checkpoint(tmp_path, 40)
    note(tmp_path, "40")
    own = [f"trainer.default_local_dir={tmp_path}", f"trainer.total_training_steps={total}"]
    (finding,) = found(DENSE, *own)
    assert re.search(rf"global_step_40, and .*total_training_steps ends at step {total}: nothing is left", str(finding))
    mended(DENSE, own, finding)
    named = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_40", own[1]]
    mended(DENSE, named, found(DENSE, *named)[0])


def test_epochs_that_are_over(tmp_path: Path) -> None:
    checkpoint(tmp_path, 4, world=1)
    note(tmp_path, "4")
    own = [
        f"trainer.default_local_dir={tmp_path}", "trainer.resume_mode=auto", "prepare.data.n_train=48",
        "trainer.total_training_steps=null", "trainer.total_epochs=2", "trainer.save_freq=2", "trainer.test_freq=2",
    ]  # fmt: skip
    (finding,) = found(CPU, *own)
    assert "trainer.total_epochs ends at step 4: nothing is left to train" in str(finding)
    mended(CPU, own, finding)


def test_shards_of_other_ranks(tmp_path: Path) -> None:
    checkpoint(tmp_path, 20, world=16)
    note(tmp_path, "20")
    own = [f"trainer.default_local_dir={tmp_path}"]
    (finding,) = found(DENSE, *own)
    assert re.search(r"n_gpus_per_node=8 x 1 node are 8 ranks, and .*global_step_20 has the shards of 16", str(finding))
    mended(DENSE, own, finding)


def test_a_checkpoint_that_is_cut_short(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 20)
    note(tmp_path, "20")
    own = [f"trainer.default_local_dir={tmp_path}"]
    (whole / "actor" / "optim_world_size_8_rank_3.pt").write_text("")
    (finding,) = found(DENSE, *own)
    assert re.search(r"goes on from .*, in which optim_world_size_8_rank_3\.pt is missing or empty\.", str(finding))
    mended(DENSE, own, finding)
    (whole / "actor" / "optim_world_size_8_rank_3.pt").unlink()
    (whole / "actor" / "model_world_size_8_rank_7.pt").unlink()
    (finding,) = found(DENSE, *own)
    assert "model_world_size_8_rank_7.pt is missing or empty (one of 2)." in str(finding)


def test_a_checkpoint_without_the_place_in_the_data(tmp_path: Path) -> None:
    whole = checkpoint(tmp_path, 20)
    note(tmp_path, "20")
    (whole / "data.pt").unlink()
    (finding,) = found(DENSE, f"trainer.default_local_dir={tmp_path}")
    assert finding.level == "warning" and "the order of the data begins anew" in str(finding)


@pytest.mark.parametrize("path", ["", "/global_step_20/", "/global_step_20/actor"])
def test_a_folder_that_is_no_step(tmp_path: Path, path: str) -> None:
    for step in (8, 20):
        checkpoint(tmp_path, step)
    named = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}{path}"]
    (finding,) = found(DENSE, *named)
    assert finding.level == "error" and "has to end with global_step_N" in str(finding)
    assert finding.overrides == (f"trainer.resume_from_path={tmp_path}/global_step_20",)
    mended(DENSE, named, finding)
