"""The result of an evaluation as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print it; readable on 80 columns.

    Args:
        result: what ``drpo_verl.evaluation.run.run`` returns.
        console: where to.
    """
    settings = result["settings"]
    _line(console, "")
    _line(
        console,
        f"{result['model']}: {settings['k']} samples a problem, temperature {settings['temperature']:g}, "
        f"top-p {settings['top_p']:g}, in brackets 95 % intervals over the problems",
    )
    alike = False
    for source, figures in result["results"].items():
        _line(console, "")
        _line(
            console,
            f"{source}: {figures['problems']:,} problems, {figures['samples']:,} responses of "
            f"{figures['mean_tokens']:,.0f} tokens on average, {figures['truncated']:.1%} cut off",
        )
        table = Table.grid(padding=(0, 2))
        for name, each in figures.items():
            if isinstance(each, Mapping):
                mark = "*" if each["method"] == "wilson" else ""
                alike = alike or bool(mark)
                table.add_row(f"  {name}", f"{each['value']:.3f}", f"({each['low']:.3f} to {each['high']:.3f}){mark}")
        console.print(table)
    if alike:
        _line(console, "* every problem has this value: Wilson's interval, with a trial a problem")


def _line(console: Console, text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)
