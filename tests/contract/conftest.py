"""Shared by the contract tests."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from drpo_verl.models import tiny_model


@pytest.fixture(scope="session")
def random_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random policy: no warm-up is needed to compare ranks."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer = tiny_model.build_tokenizer()
    torch.manual_seed(0)
    tiny_model.build_model(tiny_model.TinyPolicyRecipe(), tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
