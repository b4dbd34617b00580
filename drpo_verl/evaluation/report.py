"""The result of an evaluation as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table


def show(result: Mapping[str, Any], console: Console) -> None:
    """Print it.

    Args:
        result: what ``drpo_verl.evaluation.run.run`` returns.
        console: where to.
    """
    settings = result["settings"]
    table = Table(
        title=f"{result['model']}: {settings['k']} samples a problem, temperature {settings['temperature']:g}, "
        f"top-p {settings['top_p']:g}",
        title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0),
        caption="in brackets 95 % intervals over problems: bootstrap, each problem with all of its samples",
        caption_justify="left",
    )  # fmt: skip
    for name in ("", "problems", "", "", "tokens", "truncated"):
        table.add_column(name, justify="right" if name else "left", no_wrap=True)
    for source, figures in result["results"].items():
        estimates = {name: each for name, each in figures.items() if isinstance(each, Mapping)}
        for number, (name, each) in enumerate(estimates.items()):
            wilson = "*" if each["method"] == "wilson" else ""
            value = f"{each['value']:.3f} ({each['low']:.3f} to {each['high']:.3f}){wilson}"
            about = (source, f"{figures['problems']:,}") if number == 0 else ("", "")
            shape = (f"{figures['mean_tokens']:.0f}", f"{figures['truncated']:.1%}") if number == 0 else ("", "")
            table.add_row(*about, name, value, *shape)
    console.print()
    console.print(table)
    if any(
        isinstance(each, Mapping) and each["method"] == "wilson"
        for figures in result["results"].values()
        for each in figures.values()
    ):
        console.print("* every problem has this value: Wilson's interval, a trial a problem", highlight=False)
