"""Which step a run goes on from, found before Ray starts: whole, half-written, and with verl's note right or wrong."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from configurations import ACTOR, ASYNC, CPU, DENSE, composed, findings, findings_after
from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

from drpo_verl.check.rule import evaluate
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.preflight import check_run
from drpo_verl.preflight.resume import go_on_from_a_whole_step, resume

NOTE = "latest_checkpointed_iteration.txt"


def save_step(folder: Path, number: int, ranks: int = 1) -> Path:
    """A step as verl's FSDP actor and trainer save it, of which only the shards' names and the files' form matter."""
    step = folder / f"global_step_{number}"
    actor = step / "actor"
    (actor / "huggingface").mkdir(parents=True)
    for rank in range(ranks):
        for kind in ("model", "optim", "extra_state"):
            torch.save({"weight": torch.ones(100)}, actor / f"{kind}_world_size_{ranks}_rank_{rank}.pt")
    (actor / "fsdp_config.json").write_text("{}")
    (actor / "huggingface" / "config.json").write_text("{}")
    torch.save({}, step / "data.pt")
    return step


@pytest.fixture
def checkpoints(tmp_path: Path) -> Path:
    """Two whole steps, 5 and 10, of one rank, and verl's note of the second."""
    for step in (5, 10):
        save_step(tmp_path, step)
    (tmp_path / NOTE).write_text("10")
    return tmp_path


def _found(folder: Path, *overrides: str, base: tuple[str, ...] = CPU) -> list[Finding]:
    settings = (f"trainer.default_local_dir={folder}", "trainer.resume_mode=auto", *overrides)
    return evaluate([resume], RunConfig(composed(base, *settings)))


def _resumed(folder: Path) -> Path | None:
    """The step that verl takes after ``drpo_verl.train`` has had its say."""
    config = composed(CPU, f"trainer.default_local_dir={folder}", "trainer.resume_mode=auto")
    go_on_from_a_whole_step(config)
    if config.trainer.resume_mode == "resume_path":
        assert int(config.trainer.resume_from_path.split("global_step_")[-1])  # as verl reads it
        return Path(config.trainer.resume_from_path)
    found = find_latest_ckpt_path(str(folder))
    return Path(found) if found else None


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def test_what_verl_finds_by_itself_is_left_to_it(checkpoints: Path) -> None:
    assert _found(checkpoints) == [] and _resumed(checkpoints) == checkpoints / "global_step_10"
    assert _found(checkpoints / "nowhere") == []
    (checkpoints / NOTE).write_text("5\n")
    assert _found(checkpoints) == [] and _resumed(checkpoints) == checkpoints / "global_step_5"


@pytest.mark.parametrize(
    ("note", "said"),
    [(None, "is missing"), (b"", "is empty"), (b" \n", "is empty"), (b"ten", "has 'ten', which is no step"),
     (b"\xff\xfe", "which is no step"), (b"99", "names step 99, which is not there"), (b"-1", "is no step")],
)  # fmt: skip
def test_a_note_that_is_of_no_use(note: bytes | None, said: str, checkpoints: Path) -> None:
    file = checkpoints / NOTE
    file.unlink() if note is None else file.write_bytes(note)
    (finding,) = _found(checkpoints)
    assert finding.level == "warning" and said in finding.message and "goes on from global_step_10" in finding.remedy
    (override,) = finding.overrides
    assert _found(checkpoints, *override.split(" ")) == []
    assert _resumed(checkpoints) == checkpoints / "global_step_10"


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no shard of the model": (lambda step: (step / "actor" / "model_world_size_1_rank_0.pt").unlink(),
                              "actor/model_world_size_1_rank_0.pt is missing"),
    "the optimiser cut short": (lambda step: _cut(step / "actor" / "optim_world_size_1_rank_0.pt"),
                                "actor/optim_world_size_1_rank_0.pt is cut short"),
    "an empty file": (lambda step: (step / "actor" / "extra_state_world_size_1_rank_0.pt").write_bytes(b""),
                      "actor/extra_state_world_size_1_rank_0.pt is cut short"),
    "of one of two ranks": (lambda step: torch.save({}, step / "actor" / "model_world_size_2_rank_0.pt"),
                            "actor/model_world_size_2_rank_1.pt is missing"),
    "no data": (lambda step: (step / "data.pt").unlink(), "data.pt is missing"),
    "no actor": (lambda step: shutil.rmtree(step / "actor"), "actor/ is missing"),
    "an empty actor": (lambda step: (shutil.rmtree(step / "actor"), (step / "actor").mkdir()), "actor/ is empty"),
    "of an asynchronous trainer": (lambda step: (step / "transfer_queue.tmp").mkdir(),
                                   "transfer_queue/ was not written to its end"),
    "of a critic": (lambda step: (step / "critic").mkdir(), "critic/ is empty"),
    "of Megatron": (lambda step: (shutil.rmtree(step / "actor"), (step / "actor" / "model").mkdir(parents=True)),
                    "actor/ckpt_contents.json is missing"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_a_half_written_step_is_named_with_the_step_that_is_resumed(what: str, checkpoints: Path) -> None:
    spoil, problem = BROKEN[what]
    spoil(checkpoints / "global_step_10")
    # As a run leaves it that was killed while saving: the note has the step before.
    (checkpoints / NOTE).write_text("5")
    (finding,) = _found(checkpoints)
    assert finding.level == "warning" and "The run goes on from global_step_5." in finding.remedy
    assert f"global_step_10 is not whole ({problem})" in finding.message
    assert _resumed(checkpoints) == checkpoints / "global_step_5"
    # And where the note names it, or nothing.
    for text in ("10", "") if what != "no data" else ("",):
        (checkpoints / NOTE).write_text(text)
        (finding,) = _found(checkpoints)
        assert finding.level == "warning" and "goes on from global_step_5" in finding.remedy
        assert f"global_step_10 is not whole ({problem})" in finding.message
        assert _resumed(checkpoints) == checkpoints / "global_step_5"


def test_nothing_to_go_on_from(checkpoints: Path) -> None:
    for step in (5, 10):
        _cut(checkpoints / f"global_step_{step}" / "data.pt")
    for text in ("10", ""):
        (checkpoints / NOTE).write_text(text)
        (finding,) = _found(checkpoints)
        assert finding.level == "error" and finding.overrides == ("trainer.resume_mode=disable",)
        assert "global_step_5 is not whole" in finding.message and "global_step_10 is not whole" in finding.message
        assert _found(checkpoints, "trainer.resume_mode=disable") == []
    # Killed while saving for the first time: what verl does is right, and is said.
    (checkpoints / NOTE).unlink()
    (finding,) = _found(checkpoints)
    assert finding.level == "warning" and "The run starts from the beginning" in finding.message
    assert _resumed(checkpoints) is None
    # A note without a step: the folder was cleared.
    shutil.rmtree(checkpoints)
    checkpoints.mkdir()
    assert _found(checkpoints) == []
    (checkpoints / NOTE).write_text("10")
    (finding,) = _found(checkpoints)
    assert finding.level == "error" and "names step 10, which is not there" in finding.message


def test_a_finished_step_without_the_place_in_the_data_is_resumed_with_a_warning(checkpoints: Path) -> None:
    ten = checkpoints / "global_step_10"
    (ten / "data.pt").unlink()
    for settings in ((), ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={ten}")):
        (finding,) = _found(checkpoints, *settings)
        assert finding.level == "warning" and "the order of the data begins anew" in finding.message
    assert _resumed(checkpoints) == ten


def test_a_step_that_was_chosen_is_looked_at_too(checkpoints: Path) -> None:
    ten = checkpoints / "global_step_10"
    chosen = ("trainer.resume_mode=resume_path", f"trainer.resume_from_path={ten}")
    assert _found(checkpoints, *chosen) == []
    _cut(ten / "actor" / "model_world_size_1_rank_0.pt")
    (finding,) = _found(checkpoints, *chosen)
    assert finding.level == "error" and "rank_0.pt is cut short" in finding.message
    assert finding.overrides[0] == f"trainer.resume_from_path={checkpoints / 'global_step_5'}"
    for override in finding.overrides:
        assert _found(checkpoints, *chosen, *override.split(" ")) == []


def test_of_several_numbers_of_ranks_in_one_folder_the_last_one_counts(checkpoints: Path) -> None:
    actor = checkpoints / "global_step_10" / "actor"
    for shard in [*actor.glob("*_world_size_1_rank_0.pt")]:
        for rank in range(4):  # of an earlier run in the same folder
            shutil.copy(shard, actor / shard.name.replace("1_rank_0", f"4_rank_{rank}"))
    assert [finding.setting for finding in _found(checkpoints)] == ["trainer.n_gpus_per_node"]
    (actor / "fsdp_config.json").write_text('{"FSDP_version": 2, "world_size": 1}')
    assert _found(checkpoints) == []


def test_only_what_is_loaded_has_to_be_there(checkpoints: Path) -> None:
    (checkpoints / "global_step_10" / "actor" / "optim_world_size_1_rank_0.pt").unlink()
    assert _found(checkpoints, f"{ACTOR}.checkpoint.load_contents=[model,extra]") == []


def test_a_node_may_have_the_shards_of_its_own_ranks_only(tmp_path: Path) -> None:
    step = save_step(tmp_path, 10, ranks=16)
    (tmp_path / NOTE).write_text("10")
    for shard in (step / "actor").glob("*_rank_1[0-9].pt"):
        shard.unlink()
    nodes = ("trainer.nnodes=2", "trainer.n_gpus_per_node=8")
    assert _found(tmp_path, *nodes, base=ASYNC) == []
    _cut(step / "actor" / "model_world_size_16_rank_3.pt")
    assert [finding.level for finding in _found(tmp_path, *nodes, base=ASYNC)] == ["error"]


def test_the_whole_check_has_the_rule(checkpoints: Path) -> None:
    (checkpoints / NOTE).write_text("")
    settings = (f"trainer.default_local_dir={checkpoints}", "trainer.resume_mode=auto")
    found = check_run(RunConfig(composed(CPU, *settings)))
    assert [each.rule for each in found if each.level == "warning"] == ["resume"]


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
    save_step(tmp_path, 20, ranks=8)
    save_step(tmp_path, 40, ranks=8)
    note(tmp_path, "40")
    assert not found(DENSE, own)


@pytest.mark.parametrize("total", [40, 30])
def test_nothing_is_left_to_train(tmp_path: Path, total: int) -> None:
    save_step(tmp_path, 40, ranks=8)
    note(tmp_path, "40")
    own = [f"trainer.default_local_dir={tmp_path}", f"trainer.total_training_steps={total}"]
    (finding,) = found(DENSE, *own)
    assert re.search(rf"global_step_40, and .*total_training_steps ends at step {total}: nothing is left", str(finding))
    mended(DENSE, own, finding)
    named = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}/global_step_40", own[1]]
    mended(DENSE, named, found(DENSE, *named)[0])


def test_epochs_that_are_over(tmp_path: Path) -> None:
    save_step(tmp_path, 4)
    note(tmp_path, "4")
    own = [
        f"trainer.default_local_dir={tmp_path}", "trainer.resume_mode=auto", "prepare.data.n_train=48",
        "trainer.total_training_steps=null", "trainer.total_epochs=2", "trainer.save_freq=2", "trainer.test_freq=2",
    ]  # fmt: skip
    (finding,) = found(CPU, *own)
    assert "trainer.total_epochs ends at step 4: nothing is left to train" in str(finding)
    mended(CPU, own, finding)


def test_shards_of_other_ranks(tmp_path: Path) -> None:
    save_step(tmp_path, 20, ranks=16)
    note(tmp_path, "20")
    own = [f"trainer.default_local_dir={tmp_path}"]
    (finding,) = found(DENSE, *own)
    assert re.search(r"n_gpus_per_node=8 x 1 node are 8 ranks, and .*global_step_20 has the shards of 16", str(finding))
    mended(DENSE, own, finding)


@pytest.mark.parametrize("path", ["", "/global_step_20/", "/global_step_20/actor"])
def test_a_folder_that_is_no_step(tmp_path: Path, path: str) -> None:
    for step in (8, 20):
        save_step(tmp_path, step, ranks=8)
    named = ["trainer.resume_mode=resume_path", f"trainer.resume_from_path={tmp_path}{path}"]
    (finding,) = found(DENSE, *named)
    assert finding.level == "error" and "has to end with global_step_N" in str(finding)
    assert finding.overrides == (f"trainer.resume_from_path={tmp_path}/global_step_20",)
    mended(DENSE, named, finding)
