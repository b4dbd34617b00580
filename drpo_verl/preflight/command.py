"""``drpo-verl check``: compose, verify, summarise, and show the outcome to people and to programs."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from textwrap import fill

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from drpo_verl.check.method import has_no_effect
from drpo_verl.configuration.compose import CompositionError, compose_run
from drpo_verl.configuration.finding import LEVELS, Finding, Level
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ENVIRONMENT
from drpo_verl.preflight import check_run
from drpo_verl.preflight.facts import facts
from drpo_verl.preflight.memory_estimate import GIB, Memory, card_gib, estimate

_INDENT = " " * 9
_MOST_COLUMNS = 110
_STYLE: dict[Level, str] = {"error": "bold red", "warning": "yellow", "note": "cyan"}


@dataclass(frozen=True)
class Result:
    """All that the preflight has to say about a run.

    Args:
        findings: the worst first.
        memory: of one card; None when it could not be estimated.
        facts: what the configuration comes to.
        card_gib: of one card; None when it is not known.
    """

    findings: list[Finding]
    memory: Memory | None = None
    facts: dict[str, str] | None = None
    card_gib: float | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing stops the run."""
        return not any(finding.level == "error" for finding in self.findings)

    def count(self) -> str:
        """How many of each level, in words."""
        counts = {level: sum(finding.level == level for finding in self.findings) for level in LEVELS}
        return ", ".join(f"{number} {level}{'' if number == 1 else 's'}" for level, number in counts.items())

    def as_json(self) -> str:
        """Findings, facts and the memory in GiB."""
        whole = {"ok": self.ok, **asdict(self)}
        card = whole.pop("card_gib")
        if self.memory is not None:
            whole["memory"]["card_gib"] = card
            for name in ("update", "rollout", "hybrid"):
                for part in whole["memory"][name]:
                    part["gib"] = round(part.pop("size") / GIB, 2)
        return json.dumps(whole, indent=2, default=str)

    def show(self, console: Console) -> None:
        """Print the findings, and tables of the memory and the facts."""
        if self.findings:
            _show_findings(self.findings, console)
        if self.memory is not None:
            console.print(_memory_table(self.memory, self.card_gib))
        if self.facts is not None:
            console.print(_facts_table(self.facts))
        style = "green" if self.ok else "bold red"
        console.print(("can run: " if self.ok else "would not run as meant: ") + self.count(), style=style)


def check_command(overrides: Sequence[str]) -> Result:
    """Check the run that ``python -m drpo_verl.train`` would start.

    Args:
        overrides: as on its command line.
    """
    try:
        run = RunConfig(compose_run(overrides, has_no_effect))
    except CompositionError as error:
        return Result([error.finding])
    # A run's processes get it from there (hardware=cpu); without it verl looks for a GPU when it is imported.
    platform = run.get(f"{ENVIRONMENT}.VERL_PLATFORM")
    if platform is not None:
        os.environ.setdefault("VERL_PLATFORM", str(platform))
    return summarise(run, check_run(run))


def summarise(run: RunConfig, findings: list[Finding]) -> Result:
    """The findings with the facts and the memory, as far as they can be told of a configuration with errors."""
    if run.wrong_numbers:
        return Result(findings)
    try:
        memory = estimate(run)
        return Result(findings, memory, facts(run, memory), card_gib(run))
    except Exception as error:  # a bug of the summary, as one of a rule, is no reason to lose the findings
        message = f"could not be made ({type(error).__name__}: {error})."
        return Result([*findings, Finding("warning", "the summary", None, message, "Please report this.", "summary")])


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _show_findings(findings: list[Finding], console: Console) -> None:
    """Print findings as paragraphs, in which settings stay in one piece, to be copied, in narrow terminals too."""
    console.print("Findings", style="bold")
    width = min(console.width, _MOST_COLUMNS)

    def paragraph(text: str) -> str:
        return fill(
            text, width, initial_indent=_INDENT, subsequent_indent=_INDENT,
            break_long_words=False, break_on_hyphens=False,
        )  # fmt: skip

    for finding in findings:
        level = Text(finding.level.ljust(len(_INDENT)), style=_STYLE[finding.level])
        console.print(Text.assemble(level, (finding.place, "bold"), f"  ({finding.rule})"), soft_wrap=True)
        for text in filter(None, (finding.message, finding.remedy)):
            console.print(Text(paragraph(text)), soft_wrap=True)
    console.print()


def _memory_table(memory: Memory, card_gib: float | None) -> Table:
    table = _table("Memory of one card (an estimate)", "while", "what", "GiB", "how")
    table.columns[2].justify = "right"
    phases = [("updating", memory.update), ("sampling", memory.rollout)]
    if memory.hybrid:
        phases.append(("sampling, hybrid", memory.hybrid))
    for phase, parts in phases:
        for row, part in enumerate(parts):
            table.add_row("" if row else phase, part.name, f"{part.size / GIB:.1f}", Text(part.how))
        of = f"of {card_gib:g}" if card_gib else "(the card's size is not known: check.gpu_memory_gib)"
        table.add_row("", Text("total", style="bold"), Text(f"{Memory.total(parts) / GIB:.1f}", style="bold"), of)
        table.add_section()
    return table


def _facts_table(statements: dict[str, str]) -> Table:
    table = _table("What it comes to", "", "")
    table.show_header = False
    for name, text in statements.items():
        table.add_row(name, Text(text))
    return table
