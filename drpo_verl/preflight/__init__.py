"""Everything that can be known about a whole run before it costs anything: no GPU, no Ray, no vLLM.

The rules of ``drpo_verl.check`` and many more: batch arithmetic, parallel sizes, lengths, precision, memory, files,
what is advisable, and what verl itself demands. ``drpo-verl check`` and ``drpo_verl.train`` apply them.
"""

from __future__ import annotations

from drpo_verl import check
from drpo_verl.check.rule import evaluate, rules_of
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.preflight import (
    anchors,
    batches,
    data,
    files,
    lengths,
    megatron,
    memory,
    optimisation,
    parallel,
    precision,
    resume,
    rollout,
    sampling,
    schedule,
    seeds,
    settings,
    thresholds,
    verl,
)

RULES = (
    *rules_of(settings),
    *check.RULES,
    *rules_of(sampling, rollout, thresholds, anchors, optimisation, batches, parallel, megatron, lengths, precision),
    *rules_of(memory, schedule, seeds, resume, data, files, verl),
)
"""The rules, in the order in which they are applied."""


def check_run(run: RunConfig) -> list[Finding]:
    """What is wrong with a run's configuration, or is to be known about it.

    Args:
        run: the configuration; sections may be missing.

    Returns:
        The findings, errors first.
    """
    findings = evaluate((rule for rule in RULES if rule is not verl.accepted_by_verl), run)
    if any(finding.level == "error" for finding in findings):
        return findings  # verl stops at its first complaint, which would most likely be one of these
    return [*evaluate([verl.accepted_by_verl], run), *findings]
