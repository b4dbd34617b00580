"""The rules: functions of a run that yield findings, each named and documented by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import Run

RuleFunction = Callable[[Run], Iterable[Finding]]


@dataclass(frozen=True)
class Rule:
    """One rule.

    Args:
        name: the function's.
        about: what it verifies, the function's docstring.
        find: the function.
        for_any_loss: whether a run of verl's own entry point whose loss is not one of ours is held to it as well.
    """

    name: str
    about: str
    find: RuleFunction
    for_any_loss: bool = False

    def __call__(self, run: Run) -> Iterator[Finding]:
        """The rule's findings. A rule that raises is a bug of the rule, and never stops a run."""
        run.replaced.clear()
        try:
            for finding in self.find(run):
                # What follows from a default in the place of what is no number is not about the user's configuration.
                if not run.replaced:
                    yield replace(finding, rule=self.name)
        except Exception as error:
            message = f"could not be evaluated ({type(error).__name__}: {str(error).strip().splitlines()[:1]})."
            yield Finding(
                "warning", f"rule {self.name}", None, message,
                "What it verifies is unchecked in this run; please report this.", self.name,
            )  # fmt: skip


RULES: dict[str, Rule] = {}


def rule(function: RuleFunction) -> RuleFunction:
    """Decorator: make a function a rule of the check, in the order of definition."""
    return _register(function, for_any_loss=False)


def rule_for_any_loss(function: RuleFunction) -> RuleFunction:
    """Decorator: likewise, and for runs that use verl's own losses too."""
    return _register(function, for_any_loss=True)


def _register(function: RuleFunction, for_any_loss: bool) -> RuleFunction:
    name = function.__name__
    about = " ".join(inspect.cleandoc(function.__doc__ or "").split())
    RULES[name] = Rule(name, about, function, for_any_loss)
    return function
