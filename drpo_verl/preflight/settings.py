"""Rules about the settings themselves, whatever they mean: that they are numbers, and that they resolve."""

from __future__ import annotations

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import RunConfig


@rule
def numbers(run: RunConfig) -> Findings:
    """Batch sizes, lengths and numbers of cards are whole and at least 1; rates and coefficients are numbers."""
    for name, number in run.wrong_numbers.items():
        # Of several settings that refer to one, only that one is named.
        if not any(other in run.reference(name) for other in run.wrong_numbers):
            advice = f"That is the default; any {number.kind[2:]} will do."
            yield run.error(name, f"is not {number.kind}.", f"{name}={number.default:g}", advice=advice)


@rule
def interpolations(run: RunConfig) -> Findings:
    """Every interpolation of the configuration resolves."""
    for name, error in run.unresolved.items():
        # Hydra's own are resolved once it runs.
        if "HydraConfig" not in str(error) and not name.startswith("hydra."):
            reason = str(error).strip().splitlines()[0]
            yield Finding("error", name, None, f"does not resolve: {reason}.", "Set what it refers to.")
