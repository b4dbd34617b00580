"""Rules: functions of a run's configuration that yield findings, each named and documented by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import ModuleType
from typing import Any

from drpo_verl.configuration.finding import LEVELS, Finding
from drpo_verl.configuration.numbers import WrongNumberError
from drpo_verl.configuration.run_config import RunConfig

Findings = Iterable[Finding]
"""What a rule yields."""


@dataclass(frozen=True)
class Rule:
    """One rule.

    Args:
        name: the name of its function.
        about: what it verifies, the function's docstring.
        find: the function.
    """

    name: str
    about: str
    find: Callable[[RunConfig], Findings]

    def __call__(self, run: RunConfig) -> Iterator[Finding]:
        """The rule's findings. A rule that raises has a bug, which is a warning and never stops a run.

        Raises:
            WrongNumberError: when the rule computes with a setting that is no number.
        """
        try:
            for finding in self.find(run):
                yield replace(finding, rule=self.name)
        except WrongNumberError:
            raise
        except Exception as error:
            message = f"could not be evaluated ({type(error).__name__}: {str(error).strip().splitlines()[:1]})."
            remedy = "What it verifies is unchecked in this run; please report this."
            yield Finding("warning", f"rule {self.name}", None, message, remedy, self.name)


def rule(function: Callable[[RunConfig], Findings]) -> Rule:
    """Decorator: make a rule of a function, whose docstring says in one sentence what is verified."""
    about = " ".join(inspect.cleandoc(function.__doc__ or "").split())
    return Rule(function.__name__, about, function)


def rules_of(*modules: ModuleType) -> tuple[Rule, ...]:
    """The rules that modules define, in the order of their definition."""
    return tuple(
        each for module in modules for each in vars(module).values()
        if isinstance(each, Rule) and each.find.__module__ == module.__name__
    )  # fmt: skip


def evaluate(rules: Iterable[Rule], run: RunConfig) -> list[Finding]:
    """The findings of rules, errors first.

    A rule stops where it computes with a setting that is no number (``RunConfig.wrong_numbers``): what follows from
    a wrong number is no finding. One note names the rules that stopped.
    """
    findings: list[Finding] = []
    stopped: dict[str, str] = {}
    for each in rules:
        try:
            for finding in each(run):
                findings.append(finding)
        except WrongNumberError as error:
            stopped[each.name] = error.setting
    if stopped:
        message = f"were not evaluated: they compute with {', '.join(dict.fromkeys(stopped.values()))}."
        findings.append(Finding("note", f"rules {', '.join(stopped)}", None, message, rule="numbers"))
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


@dataclass(frozen=True)
class Required:
    """What a setting has to be.

    Args:
        allowed: the values that it may have, the one to set first.
        why: the reason, as a sentence.
        default: what a configuration without the setting means.
    """

    allowed: tuple[Any, ...]
    why: str
    default: Any = None

    def is_met(self, run: RunConfig, name: str) -> bool:
        """Whether the setting of that name is as it has to be."""
        return run.get(name, self.default) in self.allowed


def unmet(run: RunConfig, requirements: Mapping[str, Required]) -> Findings:
    """An error for each setting, by its full name, that is not as it has to be for the run's loss mode."""
    for name, required in requirements.items():
        if not required.is_met(run, name):
            message = f"but with loss_mode={run.loss_mode!r} {required.why}"
            yield run.error(name, message, run.override(name, required.allowed[0]))
