"""The rule about alerts, which the plugin announces whatever the loss is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.run_config import RunConfig


@rule
def alerts(run: RunConfig) -> Findings:
    """The alerts on metrics are complete."""
    from drpo_verl.metrics.alerts import SECTION, parse_alerts

    section = run.get(SECTION)
    parts = {SECTION: section}
    if isinstance(section, Mapping):
        parts = {f"{SECTION}.{name}": {name: settings} for name, settings in section.items()}
    for name, part in parts.items():
        try:
            parse_alerts(part)
        except ValueError as error:
            finding = run.error(name, f"is refused: {error}", f"~{name}", advice="Or correct it.")
            yield replace(finding, value=None)
