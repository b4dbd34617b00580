"""The result of an evaluation as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print what ``drpo_verl.evaluation.run.run`` returns so that it can be read on 80 columns."""
    settings = result["settings"]
    _print_line(
        console,
        f"\n{result['model']}: {settings['k']} samples a problem, temperature {settings['temperature']:g}, "
        f"top-p {settings['top_p']:g}, in brackets 95 % intervals over the problems",
    )
    any_wilson = False
    for source, figures in result["results"].items():
        _print_line(
            console,
            f"\n{source}: {figures['problems']:,} problems, {figures['samples']:,} responses of "
            f"{figures['mean_tokens']:,.0f} tokens on average, {figures['truncated']:.1%} cut off",
        )
        table = Table.grid(padding=(0, 2))
        for name, figure in figures.items():
            if isinstance(figure, Mapping):
                is_wilson = figure["method"] == "wilson"
                any_wilson = any_wilson or is_wilson
                interval = f"({figure['low']:.3f} to {figure['high']:.3f}){'*' if is_wilson else ''}"
                table.add_row(f"  {name}", f"{figure['value']:.3f}", interval)
        console.print(table)
    if any_wilson:
        _print_line(console, "* every problem has this value: Wilson's interval, with a trial a problem")


def _print_line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
