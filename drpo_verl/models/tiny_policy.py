"""A small real policy: a Qwen3 of ~2 M parameters that has half learned two-digit arithmetic, built in minutes.

With `TinyMoeRecipe` it is a Qwen3-MoE, with `LongTailRecipe` it has a long-tailed vocabulary.

RL needs a policy that is right sometimes: one that never is gets no reward, one that always is has nothing to gain. So
a supervised warm-up trains a fresh model on the "train" split and stops when its accuracy at temperature 1 reaches a
target. At that point it is spread over near misses (a forgotten carry), with pass@8 far above pass@1.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
import transformers
from rich.console import Console

from drpo_verl.models.cache import ensure_folder
from drpo_verl.models.tiny_model import (
    LongTailRecipe,
    TinyMoeRecipe,
    TinyPolicyRecipe,
    build_model,
    build_tokenizer,
)
from drpo_verl.models.warm_up import warm_up

RECIPE_VERSION = 4
"""Raise it when a change of the code changes the policy that is built: cached ones are then rebuilt."""

WARMUP_FILE = "warmup.json"
"""The file in the model's folder with the result of the warm-up (`WarmupResult`)."""


def ensure_tiny_policy(
    cache_dir: Path | str,
    *,
    seed: int = 0,
    recipe: TinyPolicyRecipe | None = None,
    threads: int | None = None,
    console: Console | None = None,
) -> Path:
    """Return the folder of the warmed-up policy (an ordinary Hugging Face model folder), building it if need be.

    Args:
        cache_dir: where built policies are kept, one folder per recipe and seed.
        seed: fixes the initial weights, the problems and the batches.
        recipe: what to build; the default is what the demo trains.
        threads: torch threads while building; by default as many as there are idle cores now, and at most 2, which
            saturate a model this small: threads that wait for one without a core take many times longer than a single
            one. torch's setting is restored afterwards, as are its random generators.
        console: shows the progress; standard error by default.

    Raises:
        RuntimeError: this machine is too slow; see `warm_up`.
    """
    recipe = recipe or TinyPolicyRecipe()

    def build(folder: Path) -> None:
        with _torch_settings(seed=seed, threads=threads or _idle_cores(most=2)):
            spellings = recipe.spellings if isinstance(recipe, LongTailRecipe) else 1
            tokenizer = build_tokenizer(recipe.max_positions, spellings)
            model = build_model(recipe, tokenizer)
            result = warm_up(model, tokenizer, recipe, seed=seed, console=console)
        transformers.utils.logging.disable_progress_bar()  # it would show that one small file is written
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / WARMUP_FILE).write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n")

    key = {"version": RECIPE_VERSION, "seed": seed, **dataclasses.asdict(recipe)}
    return ensure_folder(cache_dir, "tiny-policy", key, build)


def ensure_tiny_moe_policy(cache_dir: Path | str) -> Path:
    """Return the folder of the policy with a mixture of experts in each block; see ``ensure_tiny_policy``."""
    return ensure_tiny_policy(cache_dir, recipe=TinyMoeRecipe())


def ensure_tiny_long_tail_policy(cache_dir: Path | str) -> Path:
    """Return the folder of the policy with a long-tailed vocabulary; see ``ensure_tiny_policy``."""
    return ensure_tiny_policy(cache_dir, recipe=LongTailRecipe())


def _idle_cores(most: int) -> int:
    cores = len(os.sched_getaffinity(0))
    busy = psutil.cpu_percent(interval=1.0) / 100 * (os.cpu_count() or 1)
    return max(1, min(most, round(cores - busy)))


@contextmanager
def _torch_settings(*, seed: int, threads: int) -> Iterator[None]:
    threads_before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads_before)
