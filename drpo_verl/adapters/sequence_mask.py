"""The settings of a sequence mask: a recipe by its name, or metric and bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, fields
from typing import Any

from drpo_verl.losses.sequence_mask import METRICS, RATIOS, SequenceMask

PRESETS: dict[str, SequenceMask] = {
    # NovaSky-AI/SkyRL at a9564572e, algorithm.off_policy_correction: geo_mask_low and geo_mask_high.
    "skyrl": SequenceMask("geometric", 0.99, 1.01),
    # THUDM/slime, examples/train_infer_mismatch_helper: the geometric bounds that it suggests, and its veto.
    "slime": SequenceMask("geometric", 0.9999, 1.0001, veto=1e-4),
    # verl 0.9.1, RolloutCorrectionConfig: bypass_pg_geo_rs, decoupled_seq_is_rs, decoupled_k3_rs. Its k1 bounds are
    # those of 1 / r.
    "verl_geometric": SequenceMask("geometric", 1 / 1.001, 1 / 0.999),
    "verl_product": SequenceMask("product", 0.5, 2.0),
    "verl_k3": SequenceMask("mean_k3", upper=0.01),
}
"""The recipes of others. All of them measure pi_old / mu once per batch; here it is pi / mu at each update."""

_PRESET = "preset"
_KEYS = (_PRESET, *(each.name for each in fields(SequenceMask)))


def sequence_mask(settings: Mapping[str, Any] | None) -> SequenceMask | None:
    """The mask that the settings describe, those of a preset replaced by what is set beside it; None for no mask."""
    given = {name: value for name, value in (settings or {}).items() if value is not None}
    preset = given.pop(_PRESET, None)
    if not given and preset is None:
        return None
    return SequenceMask(**{**(asdict(PRESETS[preset]) if preset is not None else {}), **given})


def problems(settings: Mapping[str, Any] | None) -> Iterator[tuple[str, Any, str, str]]:
    """What is wrong with the settings: key, value, problem and remedy of each."""
    given = dict(settings or {})
    for name in sorted(given.keys() - {*_KEYS}):
        yield name, given[name], "is not known.", f"Set one of {', '.join(_KEYS)}."
        return
    for name, choices in ((_PRESET, PRESETS), ("metric", METRICS)):
        if given.get(name) is not None and given[name] not in choices:
            yield name, given[name], "is not known.", f"Set it to one of {', '.join(choices)}."
            return
    for name in ("lower", "upper", "veto"):
        value = given.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value > 0):
            yield name, value, "must be a number above 0.", "Leave it out for no bound."
            return
    mask = sequence_mask(given)
    if mask is not None:
        yield from _contradictions(mask)


def _contradictions(mask: SequenceMask) -> Iterator[tuple[str, Any, str, str]]:
    if mask.veto is not None and mask.veto >= 1.0:
        yield "veto", mask.veto, "leaves out responses on which pi = mu.", "Set it below 1; 1e-4 is usual."
    if mask.metric is None:
        for name, bound in (("lower", mask.lower), ("upper", mask.upper)):
            if bound is not None:
                yield name, bound, "bounds nothing.", f"Set metric to one of {', '.join(METRICS)}."
        return
    if mask.lower is None and mask.upper is None:
        yield "metric", mask.metric, "has no bounds.", "With it go lower, upper, or both."
    if mask.metric not in RATIOS and mask.lower is not None:
        yield "lower", mask.lower, f"would leave out responses with a small {mask.metric}.", "Set upper alone."
    if mask.metric in RATIOS and not (mask.lower or 0.0) <= 1.0 <= (mask.upper or 1.0):
        name = "upper" if (mask.upper or 1.0) < 1.0 else "lower"
        yield name, getattr(mask, name), "leaves out responses on which pi = mu.", "Let the bounds hold 1 between them."
