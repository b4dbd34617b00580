"""The rule about what a method's distance is measured from, where the rollout computes in other numbers."""

from __future__ import annotations

from drpo_verl.check.method import is_recomputed, objective_of
from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_number
from drpo_verl.configuration.precision import rollout_differences, rollout_numbers, trainer_numbers
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import POLICY_LOSS
from drpo_verl.evidence import for_numbers, where_mu_hurts


@rule
def anchored_correction(run: RunConfig) -> Findings:
    """A boundary that is reached does not, unsaid, pull the policy to a rollout that computes in other numbers."""
    row, differences = objective_of(run), rollout_differences(run)
    if row is None or not row.enforcement.attenuates or is_recomputed(run) or not differences:
        return
    thresholds = {
        f"{POLICY_LOSS}.{key}": run.get(f"{POLICY_LOSS}.{key}") for key in ("delta", "delta_low", "delta_high")
    }
    binding = [name for name, value in thresholds.items() if is_number(value) and 0 < value < 1]
    if not binding:
        return
    message = "corrects tokens towards what the rollout engine computes, its errors included: "
    numbers = str(rollout_numbers(run)), str(trainer_numbers(run))
    measured = for_numbers(*numbers, run.updates_per_rollout) or where_mu_hurts()
    sentence = f"Measured with a rollout in {measured.rollout}: {measured.sentence()} " if measured else ""
    recomputed = [] if row.needs_top_k else ["anchor=recomputed"]
    yield run.note(
        binding[0], f"{message}{'; '.join(differences)}. {sentence}docs/anchors.md explains it", *recomputed,
        f"{binding[0]}=12.5",
    )  # fmt: skip
