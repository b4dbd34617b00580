"""``drpo_verl/evidence.json``, by which ``drpo-verl probe`` and ``check`` know what the study has found."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.study_claims import FEWEST, MARGIN
from benchmarks.study_map import AROUND_MU, ASYNC, BASELINE, FROM_PI_OLD, Method, Setting, StudyMap
from benchmarks.study_style import method_label
from drpo_verl.configuration.compose import compose_run
from drpo_verl.configuration.precision import rollout_numbers, trainer_numbers
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.evidence import HELPS, HURTS, SAME, UNDECIDED

_ANCHORS = {AROUND_MU: "mu", FROM_PI_OLD: "pi_old"}


def evidence(study: StudyMap) -> str:
    """The content of ``drpo_verl/evidence.json``: the settings in which a method was compared with no trust region."""
    settings = [_of_setting(study, setting) for setting in study.settings]
    return json.dumps([each for each in settings if each is not None], indent=2) + "\n"


def _of_setting(study: StudyMap, setting: Setting) -> dict[str, Any] | None:
    """What was found in a setting; None with too few runs, with another policy, or with asynchronous samplers."""
    found: dict[str, dict[str, str]] = {"mu": {}, "pi_old": {}}
    others: dict[str, str] = {}
    baseline = study.cell(setting, BASELINE)
    # Findings are looked up by the engines' numbers and the updates alone, so they have to be of one policy.
    if setting.updates == ASYNC or setting.has_long_tail or baseline is None or len(baseline.finished) < FEWEST:
        return None
    runs = len(baseline.finished)
    for method, cell in study.made(setting):
        if method.name == BASELINE or not (kind := _kind(study, setting, method)):
            continue
        if method.delta is None:
            others[method_label(method)] = kind
        else:
            found[_ANCHORS[method.family]][f"{method.delta:g}"] = kind
        runs += len(cell.finished)
    if not others and not any(found.values()):
        return None
    rollout, trainer = _numbers(study, setting)
    return {
        "rollout": rollout, "trainer": trainer, "updates": setting.steps,
        "mismatch": float(f"{study.engine_mismatch(setting):.3g}"), "runs": runs, "found": _sorted(found),
        "others": others,
    }  # fmt: skip


def _kind(study: StudyMap, setting: Setting, method: Method) -> str | None:
    """What a method does against no trust region; None with too few seeds to say."""
    difference = study.difference(setting, method.name)
    if difference is None or difference.interval is None or len(difference.values) < FEWEST:
        return None
    low, high = difference.interval
    if low > 0:
        return HELPS
    if high < 0:
        return HURTS
    return SAME if low > -MARGIN and high < MARGIN else UNDECIDED


def _numbers(study: StudyMap, setting: Setting) -> tuple[str, str]:
    """What the two engines of a setting compute in."""
    planned = next(
        run for run in study.plan.runs
        if (run.choices["mismatch"], run.choices["updates"]) == (setting.mismatch, setting.updates)
    )  # fmt: skip
    config = RunConfig(compose_run(list(planned.overrides)))
    return str(rollout_numbers(config)), str(trainer_numbers(config))


def _sorted(found: Mapping[str, Mapping[str, str]]) -> dict[str, dict[str, str]]:
    return {
        anchor: dict(sorted(of_delta.items(), key=lambda item: float(item[0]))) for anchor, of_delta in found.items()
    }
