"""What a run with ``+method=`` has to satisfy, because our losses could not do what they say without it.

verl's own ``validate_config`` is held to these rules, before Ray starts. What is advisable for a run, and what verl
itself demands, is in ``drpo_verl.preflight``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from drpo_verl.check import alerts, method, top_k, whole_responses
from drpo_verl.check.rule import evaluate, rules_of
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import RunConfig

if TYPE_CHECKING:
    from omegaconf import DictConfig

RULES = rules_of(method, top_k, whole_responses, alerts)
"""The rules, in the order in which they are applied."""


def validate_or_raise(config: DictConfig) -> list[Finding]:
    """Refuse a configuration that our losses can not work with. Of verl's own losses, only mode and alerts are checked.

    Args:
        config: a whole run's, composed; sections may be missing.

    Returns:
        The findings that do not stop the run.

    Raises:
        ValueError: with every error.
    """
    findings = evaluate(RULES, RunConfig(config))
    raise_if_errors(findings)
    return findings


def raise_if_errors(findings: Iterable[Finding]) -> None:
    """Refuse a run with errors.

    Raises:
        ValueError: with all of them.
    """
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if len(errors) == 1:
        raise ValueError(errors[0])
    if errors:
        raise ValueError(f"{len(errors)} settings can not work:\n" + "\n".join(f"- {error}" for error in errors))
