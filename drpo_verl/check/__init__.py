"""The preflight: a configuration is verified before it costs anything. No GPU, no Ray, no vLLM.

``check`` takes a composed configuration and returns findings; ``refuse`` is what verl's own entry point is held to.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from drpo_verl.configuration.finding import LEVELS, Finding

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from drpo_verl.check.registry import Rule
    from drpo_verl.configuration.run_config import Run

__all__ = ["Finding", "check", "refuse", "rules", "stop"]

_MODULES = (
    "check.policy",
    *(
        f"preflight.{name}"
        for name in ("batches", "parallel", "lengths", "precision", "memory", "schedule", "files", "verl")
    ),
)
VERLS_OWN = "accepted_by_verl"
"""The rule that asks verl."""


def rules() -> dict[str, Rule]:
    """All rules by name, in the order in which they are applied."""
    from drpo_verl.check.registry import RULES

    for module in _MODULES:  # which registers its rules
        import_module(f"drpo_verl.{module}")
    order = {f"drpo_verl.{module}": place for place, module in enumerate(_MODULES)}
    return dict(sorted(RULES.items(), key=lambda item: order.get(item[1].find.__module__, len(order))))


def check(config: DictConfig) -> list[Finding]:
    """What is wrong with a run's configuration, or is to be known about it.

    Args:
        config: composed; sections may be missing.

    Returns:
        The findings, errors first.
    """
    from drpo_verl.configuration.run_config import Run

    return apply_rules(Run(config))


def apply_rules(run: Run, chosen: Callable[[Rule], bool] = lambda rule: True) -> list[Finding]:
    """As ``check``, with the rules that are chosen."""
    findings: list[Finding] = []
    for rule in rules().values():
        # verl stops at its first complaint, which is worth repeating only when it is not one of these.
        known = rule.name == VERLS_OWN and any(finding.level == "error" for finding in findings)
        if chosen(rule) and not known:
            findings += rule(run)
    return sorted(findings, key=lambda finding: LEVELS.index(finding.level))


def refuse(config: DictConfig) -> list[Finding]:
    """What verl's own validation is held to. Runs of verl's own losses are only checked for a known loss and alerts.

    Args:
        config: a whole run's.

    Returns:
        The findings that do not stop the run.

    Raises:
        ValueError: with every error.
    """
    from drpo_verl.configuration.run_config import Run
    from drpo_verl.losses import OBJECTIVES

    run = Run(config)
    ours = run.loss_mode in OBJECTIVES
    # verl is about to say itself what it does not accept.
    findings = apply_rules(run, lambda rule: (ours and rule.name != VERLS_OWN) or rule.for_any_loss)
    stop(findings)
    return findings


def stop(findings: list[Finding]) -> None:
    """Refuse a run with errors.

    Raises:
        ValueError: with all of them.
    """
    errors = [str(finding) for finding in findings if finding.level == "error"]
    if len(errors) == 1:
        raise ValueError(errors[0])
    if errors:
        raise ValueError(f"{len(errors)} settings can not work:\n" + "\n".join(f"- {error}" for error in errors))
