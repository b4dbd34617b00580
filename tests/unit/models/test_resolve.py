"""What a model's name stands for, and what is said of names that stand for nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from drpo_verl.errors import UserError
from drpo_verl.models.resolve import resolve


def test_models(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").touch()
    assert resolve(str(folder)) == str(folder)
    assert resolve("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    for name in ("/no/such/folder", "./model", "nothing", "a/b/c"):
        with pytest.raises(UserError, match=f"MODEL='{name}' does not exist.*tiny, tiny_moe, tiny_long_tail, smollm2"):
            resolve(name)
    with pytest.raises(UserError, match=r"has no config\.json"):
        resolve(str(tmp_path))
