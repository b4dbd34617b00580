"""The mismatch of the two engines, measured over models and precisions: ``make mismatch``.

Each cell is one ``drpo-verl probe``: vLLM samples, the trainer's forward scores, with the same weights. What is found
goes into docs/study/mismatch.json, from which the tables of docs/precision.md and docs/probe.md and
docs/study/mismatch.png are made. A cell that is there, with the same settings, is measured again only by its name.

    python -m benchmarks.mismatch                 # all that is missing
    python -m benchmarks.mismatch smollm2/fp16    # one cell, again
    python -m benchmarks.mismatch --draw          # only table and picture
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.mismatch_page import PAGES, draw, with_table

if TYPE_CHECKING:
    from drpo_verl.probe.settings import Settings

RESULTS, PICTURE = Path("docs/study/mismatch.json"), Path("docs/study/mismatch.png")
RUNS = Path("outputs/mismatch")

MODELS: Mapping[str, Mapping[str, Any]] = {
    "tiny": {"count": 256, "max_tokens": 6},
    "tiny_moe": {"count": 256, "max_tokens": 6},
    "tiny_long_tail": {"count": 256, "max_tokens": 6},
    "smollm2": {"prompts": Path("docs/probe_prompts.txt"), "samples": 2, "max_tokens": 24},
}
"""The prompts of each model: arithmetic for the tiny policies, and open questions."""

_FP32 = {"dtype": "float32", "train_dtype": "float32"}
_BF16_ROLLOUT = {"dtype": "bfloat16", "train_dtype": "float32"}
PRECISIONS: Mapping[str, Mapping[str, Any]] = {
    "fp32": _FP32,
    "fp16": {"dtype": "float16", "train_dtype": "float16"},
    "fp16_head": {"dtype": "float16", "train_dtype": "float16", "head_dtype": "float32"},
    "bf16": {"dtype": "bfloat16", "train_dtype": "bfloat16"},
    "bf16_head": {"dtype": "bfloat16", "train_dtype": "bfloat16", "head_dtype": "float32"},
    "bf16_rollout": _BF16_ROLLOUT,
    "fp8_kv": {**_BF16_ROLLOUT, "kv_cache_dtype": "fp8_e4m3"},
    "int8": {**_FP32, "weights": "int8"},
    "fp8": {**_FP32, "weights": "fp8"},
    "int4": {**_FP32, "weights": "int4"},
    "int3": {**_FP32, "weights": "int3"},
}
"""The options of the probe for each precision; ``mismatch_page.TITLES`` has what they are called."""


def settings_of(model: str, precision: str) -> Settings:
    """The settings of a cell's probe."""
    from drpo_verl.probe.settings import Settings

    return Settings(model, **MODELS[model], **PRECISIONS[precision])


def measure(model: str, precision: str) -> dict[str, Any]:
    """Probe a model in a precision; what is kept of it."""
    from rich.console import Console

    from drpo_verl.probe.run import run

    return kept(model, precision, run(settings_of(model, precision), RUNS / model / precision, Console()))


def is_there(cell: str, known: Mapping[str, Any]) -> bool:
    """Whether a cell has been measured with the settings that it has now."""
    settings = json.loads(json.dumps(asdict(settings_of(*cell.split("/"))), default=str))
    return cell in known and known[cell]["settings"] == given(settings)


def given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that are not None, which alone are kept."""
    return {name: value for name, value in settings.items() if value is not None}


def kept(model: str, precision: str, result: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a probe's result: small enough to be committed."""

    def effects(of_method: Mapping[str, Any]) -> dict[str, list[float]]:
        signs = (of_method["positive_advantage"], of_method["negative_advantage"])
        names = ("removed", "attenuated", "corrected", "weight_min")
        return {name: [_rounded(sign[name]) for sign in signs] for name in names}

    return {
        "model": model,
        "precision": precision,
        "tokens": result["tokens"],
        "suggested_delta": _rounded(result["suggested_delta"]["delta"]["delta"]),
        "mismatch": {name: _rounded(value) for name, value in result["mismatch"].items()},
        "methods": {name: effects(of_method) for name, of_method in result["methods"].items()},
        "settings": given(result["settings"]),
        "seconds": result["seconds"],
        "versions": {name: result["versions"][name] for name in ("torch", "transformers", "vllm")},
    }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def write_pages(cells: list[dict[str, Any]]) -> None:
    """Draw the picture, and write the tables into their pages."""
    draw(cells, PICTURE)
    for page, shown in PAGES.items():
        page.write_text(with_table(page.read_text(encoding="utf-8"), filter(shown, cells)), encoding="utf-8")


def main() -> None:
    """Measure what is missing, or what is named; see the module."""
    every = [f"{model}/{precision}" for model in MODELS for precision in PRECISIONS]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cells", nargs="*", metavar="MODEL/PRECISION", help="by default all of them")
    parser.add_argument("--draw", action="store_true", help="measure nothing")
    options = parser.parse_args()
    if unknown := sorted(set(options.cells) - set(every)):
        parser.error(f"no such cell: {', '.join(unknown)}; there are {', '.join(every)}")

    known = {f"{each['model']}/{each['precision']}": each for each in _committed()}
    missing = [cell for cell in every if not is_there(cell, known)]
    for cell in [] if options.draw else options.cells or missing:
        print(f"{cell} ...", flush=True)
        known[cell] = measure(*cell.split("/"))
        RESULTS.parent.mkdir(exist_ok=True)
        ordered = [known[each] for each in every if each in known]
        RESULTS.write_text("[\n" + ",\n".join(json.dumps(each) for each in ordered) + "\n]\n")
    write_pages([known[each] for each in every if each in known])


def _committed() -> list[dict[str, Any]]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else []


if __name__ == "__main__":
    main()
