"""The rule about thresholds: where a method's trust region binds, and that PPO's are set for PPO's loss only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from drpo_verl.check.method import objective_of
from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import NUMBERS, is_number
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, POLICY_LOSS

if TYPE_CHECKING:
    from drpo_verl.losses import Objective

_CLIP, _LOW, _HIGH, _DUAL = (f"{ACTOR}.clip_ratio{suffix}" for suffix in ("", "_low", "_high", "_c"))
_ENGINE_NOISE = 1e-4
"""A distance that the mismatch of two engines in bf16 (about 1e-3) exceeds without any update."""
_NO_DUAL_CLIP = 1000
"""A dual clip above which no token of a real run is."""


@rule
def thresholds(run: RunConfig) -> Findings:
    """The method's thresholds are where they bind, and PPO's are not set for a method that does not read them."""
    row = objective_of(run)
    if row is None:
        return
    if row.verl_loss is not None:
        yield from _clip_ratios(run)
        return
    yield from _deltas(run, row)
    yield from _ratio_cap(run)
    for name in (_CLIP, _LOW, _HIGH):
        default = NUMBERS[name].default
        if run.number(name) != default:
            message = f"is PPO's, and is not read by loss_mode={run.loss_mode!r}."
            advice = f"The method's own threshold is {POLICY_LOSS}.delta."
            yield run.warning(name, message, f"{name}={default}", advice=advice)


def _clip_ratios(run: RunConfig) -> Findings:
    plain, low, high, dual = (run.number(name) for name in (_CLIP, _LOW, _HIGH, _DUAL))
    if low >= 1:
        yield run.warning(_LOW, "clips no ratio: none is below 0.", f"{_LOW}=0.2", advice="The papers have that.")
    for name, value in ((_LOW, low), (_HIGH, high)):
        if value <= 0:
            yield run.error(name, "clips every token that moves.", f"{name}=0.2")
    if plain not in (low, high):
        message = f"has no effect beside clip_ratio_low={low} and clip_ratio_high={high}."
        yield run.warning(_CLIP, message, f"{_LOW}={plain} {_HIGH}={plain}", f"{_CLIP}={low}")
    if dual < _NO_DUAL_CLIP:
        message = f"takes the whole gradient from tokens of a negative advantage that have become {dual:g} times as "
        yield run.note(_DUAL, message + "likely, rare bad ones among them. Both papers' scripts have 10000.")


def _deltas(run: RunConfig, row: Objective) -> Findings:
    for key in ("delta", "delta_low", "delta_high", "region_delta"):
        name = f"{POLICY_LOSS}.{key}"
        value = run.get(name)
        if not is_number(value) or value <= 0 or run.get(f"{POLICY_LOSS}.penalty") not in (None, "l2"):
            continue
        if row.geometry.bounded and value >= 1:
            if row.enforcement.attenuates and key != "region_delta":
                message = "is never reached, as no probability moves by more than 1: the weight stays within "
                message += f"[{1 - 1 / value:.2f}, {1 + 1 / value:.2f}], a mild regulariser. Below 1 it binds."
                yield run.note(name, message)
            else:
                message = "is never reached, as no probability moves by 1: no token is masked."
                yield run.warning(name, message, f"{name}=0.2", advice="The DPPO paper has 0.1 to 0.2.")
        elif value < _ENGINE_NOISE:
            message = "is below the mismatch of two engines in bf16 (1e-3): it acts on their noise."
            advice = "`drpo-verl probe` measures the mismatch of your model and suggests a value."
            yield run.warning(name, message, f"{name}={0.2 if row.geometry.bounded else 0.05}", advice=advice)


def _ratio_cap(run: RunConfig) -> Findings:
    name = f"{POLICY_LOSS}.ratio_cap"
    cap = run.get(name)
    if is_number(cap) and 0 < cap < 1:
        message = "is below 1, and so shrinks the gradient of tokens on which the two policies agree."
        yield run.warning(name, message, f"{name}=1", advice="Or higher: PG-TIS has 3, DPPO 5.")
    elif is_number(cap) and cap > 1000:
        yield run.note(name, "caps next to nothing. The DPPO paper has 5, or none (null).")
