"""The tables and the picture that are made of ``docs/study/mismatch.json``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from docs.marked import replaced

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Cell = Mapping[str, Any]

BEGIN = "<!-- The table below is made from docs/study/mismatch.json by `make mismatch`. -->"
END = "<!-- The end of what `make mismatch` makes. -->"

TITLES = {
    "fp32": "fp32",
    "fp16": "fp16",
    "fp16_head": "fp16, LM head fp32",
    "bf16": "bf16",
    "bf16_head": "bf16, LM head fp32",
    "bf16_rollout": "bf16 against fp32",
    "fp8_kv": "bf16, fp8 KV cache, against fp32",
    "int8": "weights through int8, fp32",
    "fp8": "weights through fp8, fp32",
    "int4": "weights through int4, fp32",
    "int3": "weights through int3, fp32",
}
"""What the precisions are called; "against" names the trainer's where it is another one."""
MODELS = {
    "tiny": "tiny, dense",
    "tiny_moe": "tiny, experts",
    "tiny_long_tail": "tiny, long tail",
    "smollm2": "SmolLM2-135M",
}
METHODS = {"grpo_clip_higher": "clip 0.2/0.28 on π/μ", "dppo_binary_tv": "mask 0.2 on abs(π − μ)"}
"""The methods whose share of removed tokens is shown, with what they remove by."""

PAGES: Mapping[Path, Callable[[Cell], bool]] = {
    Path("docs/precision.md"): lambda cell: True,
    Path("docs/probe.md"): lambda cell: (
        cell["model"] == "smollm2" and cell["precision"] in ("fp32", "fp16", "fp16_head", "bf16", "bf16_head")
    ),
}
"""The pages with a table, and which cells it has."""

_COLOURS = {"tiny": "#7a8ca3", "tiny_moe": "#c9822b", "tiny_long_tail": "#8e4585", "smollm2": "#1f4e8c"}
_MARKS = {"grpo_clip_higher": "o", "dppo_binary_tv": "D"}


def with_table(page: str, cells: Iterable[Cell]) -> str:
    """A page with the table of some cells between its two marks, whatever stands there.

    Args:
        page: Markdown with the lines ``BEGIN`` and ``END``.
        cells: as ``benchmarks.mismatch.kept`` makes them.

    Raises:
        ValueError: when it does not have each of the lines once, in this order.
    """
    return replaced(page, BEGIN, END, table(cells))


def table(cells: Iterable[Cell]) -> str:
    """All cells as a table in Markdown, one line each."""
    header = [
        "model", "precision", "abs(π − μ): mean, 99 %, largest", "π/μ: 1 %, 99 %, largest", "ESS",
        *(f"without gradient under `{method}`" for method in METHODS), "suggested δ", "tokens",
    ]  # fmt: skip
    lines = [header, ["---"] * len(header)]
    for cell in cells:
        figures = cell["mismatch"]
        diff = ", ".join(_number(figures[f"abs_prob_diff_{name}"]) for name in ("mean", "p99", "max"))
        ratio = ", ".join(f"{figures[f'ratio_{name}']:.4g}" for name in ("p01", "p99", "max"))
        lines.append([
            MODELS[cell["model"]], TITLES[cell["precision"]], diff, ratio, f"{100 * figures['ess']:.4g} %",
            *(_percent(removed(cell, method)) for method in METHODS), _number(cell["suggested_delta"]),
            f"{cell['tokens']:,}",
        ])  # fmt: skip
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def removed(cell: Cell, method: str) -> float:
    """The share of the tokens without gradient under a method, if advantages of either sign are equally many."""
    positive, negative = cell["methods"][method]["removed"]
    return float(positive + negative) / 2


def draw(cells: Sequence[Cell], path: Path) -> None:
    """Draw the cells: a row for each precision, in it a line for each model."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    present = [name for name in TITLES if any(cell["precision"] == name for cell in cells)]
    models = [name for name in MODELS if any(cell["model"] == name for cell in cells)]
    figure, (errors, ratios, shares) = plt.subplots(
        1, 3, figsize=(13.5, 1.6 + 0.62 * len(present)), sharey=True, layout="constrained", width_ratios=(4, 4, 3)
    )
    for cell in cells:
        colour = _COLOURS[cell["model"]]
        y = present.index(cell["precision"]) + 0.24 * (models.index(cell["model"]) - (len(models) - 1) / 2)
        _spread(errors, y, colour, *(cell["mismatch"][f"abs_prob_diff_{at}"] for at in ("mean", "mean", "p99", "max")))
        _spread(ratios, y, colour, *(cell["mismatch"][f"ratio_{at}"] for at in ("p01", "p50", "p99", "max")))
        if cell["mismatch"]["ratio_p01"] < _RATIOS[0]:
            ratios.plot([1.08 * _RATIOS[0]], [y], "<", color=colour, ms=7)
        if cell["mismatch"]["ratio_max"] > _RATIOS[1]:
            ratios.plot([_RATIOS[1] / 1.08], [y], ">", color=colour, ms=7)
        for method, mark in _MARKS.items():
            share = removed(cell, method)
            fill = colour if share else "white"
            at = y + (0.05 if mark == "D" else -0.05)
            shares.plot([max(share, _LEAST_SHARE)], [at], mark, ms=5.5, color=colour, mfc=fill, alpha=0.9)
    errors.set_xlabel("abs(π − μ): mean (dot), to 99 % (bar), largest (line)")
    ratios.set_xlabel("π/μ: median, 1 % to 99 %, largest; arrow: further")
    ratios.set_xlim(*_RATIOS)
    shares.set_xlabel("tokens without gradient (white: none)")
    for axes in (errors, ratios, shares):
        axes.set_xscale("log")
        axes.grid(axis="x", alpha=0.3)
        for row in range(1, len(present)):
            axes.axhline(row - 0.5, color="0.85", lw=0.8)
    ratios.axvspan(0.8, 1.28, color="0.92", zorder=0)
    _ticks(ratios, (0.1, 0.25, 0.5, 0.8, 1.28, 2, 4, 10), "{:g}")
    _ticks(shares, (_LEAST_SHARE, 1e-3, 1e-2, 0.1, 1), "{:g} %", 100)
    shares.set_xlim(_LEAST_SHARE / 2, 1)
    errors.set_yticks(range(len(present)), [TITLES[name] for name in present])
    errors.set_ylim(len(present) - 0.5, -0.5)
    colours = [Line2D([], [], color=_COLOURS[name], lw=4, label=MODELS[name]) for name in models]
    marks = [
        Line2D([], [], ls="", marker=_MARKS[name], color="0.3", ms=7, label=f"{name}: {label}")
        for name, label in METHODS.items()
    ]
    clip = Patch(color="0.92", label="within that clip")
    handles = [*colours, *marks, clip]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


_RATIOS = (0.1, 10.0)
"""The ratios that are shown; a model that a format has ruined has others, down to 1e-7."""
_LEAST_SHARE = 1e-4
"""Where a share of 0 is drawn."""


def _spread(axes: Axes, y: float, colour: str, low: float, middle: float, high: float, most: float) -> None:
    """A thick line from ``low`` to ``high`` with a dot at ``middle``, and a thin one on to the largest."""
    axes.plot([high, most], [y, y], color=colour, lw=1.2, alpha=0.7)
    axes.plot([most], [y], "|", color=colour, ms=8)
    axes.plot([low, high], [y, y], color=colour, lw=4, solid_capstyle="butt", alpha=0.8)
    axes.plot([middle], [y], "o", color=colour, ms=5.5, mec="white", mew=0.8)


def _ticks(axes: Axes, at: Sequence[float], form: str, factor: float = 1.0) -> None:
    from matplotlib.ticker import NullFormatter, NullLocator

    low, high = axes.get_xlim()
    shown = [each for each in at if low <= each <= high]
    axes.set_xticks(shown, [form.format(factor * each) for each in shown])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())


def _number(value: float) -> str:
    return f"{value:.2g}" if abs(value) >= 1e-3 or not value else f"{value:.1e}"


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %" if share else "0"
