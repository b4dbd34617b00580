"""The cache builds once, publishes whole folders only, and keys them by recipe."""

import json
from pathlib import Path

import pytest

from drpo_verl.models.cache import RECIPE_FILE, ensure_folder, fingerprint


def test_fingerprint_ignores_key_order_but_not_values() -> None:
    assert fingerprint({"a": 1, "b": [2.5]}) == fingerprint({"b": [2.5], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_fingerprint_is_stable_across_processes_and_versions() -> None:
    assert fingerprint({"lr": 0.04, "name": "x"}) == "ff4ce0e4b736"


def test_fingerprint_refuses_what_has_no_json_form() -> None:
    with pytest.raises(TypeError):
        fingerprint({"a": object()})


def test_builds_once_per_recipe(tmp_path: Path) -> None:
    built: list[Path] = []

    def build(folder: Path) -> None:
        built.append(folder)
        (folder / "weights").write_text("w")

    first = ensure_folder(tmp_path / "cache", "m", {"v": 1}, build)
    assert ensure_folder(tmp_path / "cache", "m", {"v": 1}, build) == first
    assert len(built) == 1
    assert built[0] != first  # written elsewhere, then renamed
    assert (first / "weights").read_text() == "w"
    assert json.loads((first / RECIPE_FILE).read_text()) == {"v": 1}

    assert ensure_folder(tmp_path / "cache", "m", {"v": 2}, build) != first
    assert len(built) == 2


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_failed_build_leaves_nothing_and_can_be_repeated(tmp_path: Path, error: type[BaseException]) -> None:
    def fail(folder: Path) -> None:
        (folder / "weights").write_text("half")
        raise error

    with pytest.raises(error):
        ensure_folder(tmp_path, "m", {}, fail)
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []

    final = ensure_folder(tmp_path, "m", {}, lambda folder: None)
    assert not (final / "weights").exists()


def test_folders_of_a_killed_build_do_not_count(tmp_path: Path) -> None:
    final = ensure_folder(tmp_path, "m", {}, lambda folder: None)
    (final / RECIPE_FILE).unlink()
    (final / "weights").write_text("half")
    scratch = tmp_path / f".{final.name}.partial"
    scratch.mkdir()
    (scratch / "weights").write_text("half")

    assert ensure_folder(tmp_path, "m", {}, lambda folder: None) == final
    assert not (final / "weights").exists()
    assert not scratch.exists()
