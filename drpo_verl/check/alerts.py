"""The rule about alerts, which the plugin announces whatever the loss is."""

from __future__ import annotations

from collections.abc import Mapping

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.finding import Finding, remedy_sentence
from drpo_verl.configuration.run_config import RunConfig


@rule
def alerts(run: RunConfig) -> Findings:
    """The alerts on metrics are complete."""
    from drpo_verl.metrics.alerts import SECTION, parse_alerts

    section = run.get(SECTION)
    parts = (
        {f"{SECTION}.{name}": {name: settings} for name, settings in section.items()}
        if (isinstance(section, Mapping))
        else {SECTION: section}
    )
    for name, part in parts.items():
        try:
            parse_alerts(part)
        except ValueError as error:
            overrides = (f"~{name}",)
            remedy = remedy_sentence(name, overrides, "Or correct it.")
            yield Finding("error", name, None, f"is refused: {error}", remedy, overrides=overrides)
