"""A run that was resumed is one run, and files that are not as they should be are read as far as they go."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from drpo_verl.run_folder import worst_tokens
from drpo_verl.run_folder.parts import all_parts, keep_earlier, read_run
from drpo_verl.run_folder.steps import Step, StepReader, read_steps
from drpo_verl.run_folder.worst_tokens import WorstToken

REWARD, HELD_OUT = "critic/score/mean", "val-core/math/acc/mean@1"


def _write(file: Path, steps: Iterable[int], *, reward: float, held_out: Iterable[int] = ()) -> None:
    """A metrics file with these training steps, and before them a validation alone after those in ``held_out``."""
    records: list[dict[str, Any]] = [{"step": step, "data": {HELD_OUT: reward}} for step in held_out]
    records += [{"step": step, "data": {REWARD: reward, "part": reward}} for step in steps]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))


def _rewards(steps: list[Step]) -> dict[int, float | None]:
    return {step.step: step.metrics.get(REWARD) for step in steps}


def test_a_resumed_run_is_one_run_in_which_the_later_file_wins(tmp_path: Path) -> None:
    _write(tmp_path / "metrics.1.jsonl", range(1, 9), reward=0.1, held_out=[0])
    _write(tmp_path / "metrics.jsonl", range(6, 13), reward=0.9)
    steps = read_run(tmp_path).steps
    assert _rewards(steps) == {0: None} | dict.fromkeys(range(1, 6), 0.1) | dict.fromkeys(range(6, 13), 0.9)
    assert steps[0].validation == {"math": 0.1}  # before training


def test_what_was_done_beyond_the_checkpoint_is_not_in_the_weights_any_more(tmp_path: Path) -> None:
    _write(tmp_path / "metrics.1.jsonl", range(1, 9), reward=0.1)
    _write(tmp_path / "metrics.jsonl", [6], reward=0.9)  # so far
    assert _rewards(read_run(tmp_path).steps) == dict.fromkeys(range(1, 6), 0.1) | {6: 0.9}


def test_a_checkpoint_that_was_tried_again_keeps_what_it_was_trained_with(tmp_path: Path) -> None:
    _write(tmp_path / "metrics.1.jsonl", range(1, 9), reward=0.1)
    _write(tmp_path / "metrics.jsonl", [6], reward=0.9, held_out=[5])
    fifth = read_run(tmp_path).steps[4]
    assert fifth.metrics == {REWARD: 0.1, "part": 0.1, HELD_OUT: 0.9}


def test_a_run_that_began_again_is_another_one(tmp_path: Path) -> None:
    _write(tmp_path / "metrics.1.jsonl", range(1, 9), reward=0.1, held_out=[0])
    _write(tmp_path / "metrics.jsonl", [1, 2], reward=0.9, held_out=[0])
    steps = read_run(tmp_path).steps
    assert _rewards(steps) == {0: None, 1: 0.9, 2: 0.9} and steps[0].validation == {"math": 0.9}
    _write(tmp_path / "metrics.jsonl", [1, 2], reward=0.9)
    steps = read_run(tmp_path).steps
    assert _rewards(steps) == {0: None, 1: 0.9, 2: 0.9} and steps[0].validation == {"math": 0.1}


def test_parts_are_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for number in range(1, 12):
        _write(tmp_path / f"metrics.{number}.jsonl", [number, number + 1], reward=number)
    (tmp_path / "metrics.jsonl").touch()  # of a start that was ended before its first step
    (tmp_path / "metrics.old.jsonl").write_text("not a part\n")
    assert _rewards(read_run(tmp_path).steps) == {**{step: step for step in range(1, 12)}, 12: 11}
    (tmp_path / "metrics.jsonl").unlink()
    assert len(all_parts(tmp_path / "metrics.jsonl")) == 11 and len(read_run(tmp_path).steps) == 12


def test_a_folder_without_a_metrics_file(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError, match=r"no metrics file at .*metrics\.jsonl"):
            read_run(folder)


def test_earlier_files_get_one_number_which_is_the_next(tmp_path: Path) -> None:
    names = ("metrics.jsonl", "run.png", "worst_tokens.jsonl")
    for name in ("metrics.jsonl", "run.png", "run.1.png", "run.2.png"):
        (tmp_path / name).write_text(name)
    (tmp_path / "worst_tokens.jsonl").touch()
    keep_earlier(tmp_path, names)
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.3.jsonl", "run.1.png", "run.2.png", "run.3.png", "worst_tokens.jsonl"
    }  # fmt: skip
    keep_earlier(tmp_path / "nowhere", names)


def _token(step: int | None, difference: float = 0.1) -> WorstToken:
    return WorstToken(step, difference, 0.5, 0.6, 1.0, 3, "tok\u2028en", "con\u0085text")


def test_worst_tokens_are_those_of_the_steps(tmp_path: Path) -> None:
    for part, steps in (("metrics.1", range(1, 9)), ("metrics", range(6, 13))):
        _write(tmp_path / f"{part}.jsonl", steps, reward=0.5)
        for step in steps:
            worst_tokens.append(_token(step, len(part)), tmp_path / f"{part.replace('metrics', 'worst_tokens')}.jsonl")
    read = read_run(tmp_path).worst_tokens
    assert [token.step for token in read] == list(range(1, 13))
    assert [token.abs_prob_diff for token in read] == [9.0] * 5 + [7.0] * 7


GOOD = b'{"step":1,"data":{"critic/score/mean":0.5}}'


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"step":2,"data":{"critic/sc{"step":3,"data":{}}', "is not JSON ("),  # a full disk, then space again
        (b'{"step":2,"data":{"na\xffme":1}}', "is not UTF-8 (byte 22 is 0xff)"),
        (b"\0" * 20, "is not JSON ("),
        (b"[1]", 'is not a step, {"step": 1, "data": {...}}'),
        (b'{"step":2}', "is not a step"),
        (b'{"step":2,"data":[1]}', "is not a step"),
        (b'{"step":"two","data":{}}', "step='two' is not a whole number"),
        (b'{"step":1.5,"data":{}}', "step=1.5 is not a whole number"),
        (b'{"step":null,"data":{}}', "step=None is not a whole number"),
        (b'{"step":-1,"data":{}}', "step=-1 is not a whole number"),
        (b'{"step":1e999,"data":{}}', "step=inf is not a whole number"),
        (b"[" * 100_000, "is not JSON that can be read (RecursionError)"),
    ],
)
def test_a_line_that_is_no_step_is_named_by_its_number(line: bytes, why: str, tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(GOOD + b"\n\n" + line + b"\n" + GOOD.replace(b"1", b"4") + b"\n")
    said: list[str] = []
    assert [step.step for step in read_steps(file, said.append)] == [1, 4]
    (message,) = said
    assert message.startswith(f"{file}, line 3: {why}") and len(message) < len(str(file)) + 100
    with pytest.raises(ValueError, match=r"line 3: "):
        read_steps(file)


@pytest.mark.parametrize(
    ("written", "metrics"),
    [
        (b'{"step":1,"data":{"critic/sc\xe2\x80\xa8ore":0.5}}\n', {"critic/sc\u2028ore": 0.5}),
        (b'\n  \r\n{"step":1,"data":{"a":1}}\r\n\n', {"a": 1.0}),
        (b'{"step":"1","data":{"a":"0.5"}}\n', {"a": 0.5}),
        (b'{"step":1.0,"data":{"a":true}}\n', {"a": 1.0}),
        (b'{"step":1,"data":{"a":1}}', {"a": 1.0}),  # without a line feed at its end
        (b'{"step":1,"data":{"a":1e999,"b":-1e999}}\n', {"a": math.inf, "b": -math.inf}),
        (b'{"step":1,"data":{"a":-Infinity}}\n', {"a": -math.inf}),
        (b'{"step":1,"data":{"a":1%s}}\n' % (b"0" * 400), {"a": math.inf}),
        (b'{"step":1,"data":{"a":1,"note":"text","list":[1],"of":{"b":1}}}\n', {"a": 1.0}),
    ],
)  # fmt: skip
def test_what_is_plain_is_read(written: bytes, metrics: dict[str, float], tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(written)
    assert read_steps(file) == [Step(1, metrics)]


def test_a_half_written_last_line_is_left_out_and_named_where_one_listens(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(GOOD + b'\n{"step":2,"data":{"critic/s')
    said: list[str] = []
    assert [step.step for step in read_steps(file, said.append)] == [1]
    assert said == [f"{file}, line 2: was not written to its end"]
    assert [step.step for step in read_steps(file)] == [1]
    reader = StepReader(file, said.append)  # of a run that is going on
    assert [step.step for step in reader.new()] == [1] and len(said) == 1
    with file.open("ab") as more:
        more.write(b'core":1}}\nnonsense\n')
    assert [step.step for step in reader.new()] == [2]
    assert said[1:] == [f"{file}, line 3: is not JSON (Expecting value, at character 1)"]


def test_a_table_of_worst_tokens_with_a_broken_line(tmp_path: Path) -> None:
    table = tmp_path / "worst_tokens.jsonl"
    worst_tokens.append(_token(1), table)
    with table.open("ab") as file:
        file.write(b'{"step":2}\n\xff\n{"step":2,"abs_prob_diff":"x","mu":0.5,"pi":0.5,"advantage":1}\n')
    worst_tokens.append(_token(5), table)
    said: list[str] = []
    assert worst_tokens.read(table, said.append) == [_token(1), _token(5)]
    assert [message.removeprefix(f"{table}, ")[:7] for message in said] == ["line 2:", "line 3:", "line 4:"]
    with pytest.raises(ValueError, match="line 2: is not a line of the table of worst tokens"):
        worst_tokens.read(table)


def test_a_table_that_can_not_be_written_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    worst_tokens.append(_token(3), tmp_path / "file" / "worst_tokens.jsonl")  # below a file, no folder can be made
    assert "the worst token of step 3 is not in the table" in caplog.text
