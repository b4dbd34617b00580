"""Prompts of a parquet, of a text file and of nowhere, and what is said of files that hold none."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from drpo_verl.errors import UserError
from drpo_verl.models.tiny_policy import WARMUP_FILE
from drpo_verl.probe.prompts import arithmetic, read
from drpo_verl.probe.run import run
from drpo_verl.probe.settings import Settings
from drpo_verl.rewards.arithmetic import write_parquet


def test_a_line_is_a_prompt(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_text("Tell me a story.\n\n  \nWhat is a lighthouse?\nThe third\n")
    assert read(Settings("tiny", path, count=2)) == [
        [{"role": "user", "content": "Tell me a story."}],
        [{"role": "user", "content": "What is a lighthouse?"}],
    ]


def test_the_data_of_a_run(tmp_path: Path) -> None:
    train, _ = write_parquet(tmp_path, n_train=5, n_val=5, style="natural")
    prompts = read(Settings("tiny", train))
    assert prompts == pq.read_table(train)["prompt"].to_pylist() and len(prompts) == 5
    assert [message["role"] for message in prompts[0]] == ["user", "assistant", "user"]


def test_arithmetic_in_the_style_of_the_model(tmp_path: Path) -> None:
    settings = Settings("x", count=3, seed=2)
    natural = arithmetic(settings, str(tmp_path))
    assert len(natural) == 3 and natural[0][-1]["content"].startswith("Calculate")
    assert arithmetic(settings, str(tmp_path)) == natural and read(settings) == []
    (tmp_path / WARMUP_FILE).touch()
    (terse, *_), *_ = arithmetic(settings, str(tmp_path))
    assert terse["content"].replace("+", "").replace("-", "").isdigit()


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, r"--prompts='.*missing\.txt' does not exist: give"),
        ("empty.txt", b"\n \n", "holds no prompt"),
        ("binary.txt", b"\xff\xfe\x00", "neither a .parquet file nor text"),
        ("broken.parquet", b"PAR", "is not a parquet file"),
    ],
)
def test_files_without_prompts(tmp_path: Path, name: str, content: bytes | None, message: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=message):
        read(Settings("tiny", path))


def test_a_missing_file_is_told_before_the_model_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DRPO_VERL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="does not exist"):
        run(Settings("tiny", tmp_path / "missing.txt"), tmp_path / "out", Console())
    assert not list(tmp_path.iterdir())


def test_a_parquet_without_messages(tmp_path: Path) -> None:
    path = tmp_path / "other.parquet"
    for table, message in (
        ({"question": ["1+1"]}, r"has no column 'prompt' \(its columns: question\)"),
        ({"prompt": ["1+1"]}, r"row 0 \(counted from 0\): prompt is text, not a list of messages"),
        ({"prompt": [[{"role": "user", "content": "1+1"}], []]}, r"row 1 .*: prompt is an empty list"),
    ):
        pq.write_table(pa.table(table), path)
        with pytest.raises(UserError, match=message):
            read(Settings("tiny", path))
    pq.write_table(pa.table({"prompt": pa.array([], pa.list_(pa.string()))}), path)
    with pytest.raises(UserError, match="holds no prompt"):
        read(Settings("tiny", path))
