"""What to type where a setting of a method is refused: values that are tried out before they are named."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from drpo_verl.configuration.finding import Finding, remedy_sentence
from drpo_verl.configuration.plugins import plugin_config_dirs
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.search_path import config_dir
from drpo_verl.configuration.sections import POLICY_LOSS

if TYPE_CHECKING:
    from pathlib import Path

    from omegaconf import DictConfig

    from drpo_verl.adapters.setting import SettingError

_LEFT_OUT = "Leave it out."


def refused(run: RunConfig, error: SettingError) -> Finding:
    """The finding about a setting that the policy loss's configuration refuses.

    Args:
        run: the run's configuration.
        error: the refusal.
    """
    overrides = tuple(_overrides(run, error))
    advice = error.remedy
    if overrides and (advice == _LEFT_OUT or re.fullmatch(r"Set it to \w+\.", advice)):
        advice = ""  # the overrides say so
    remedy = remedy_sentence(error.setting, overrides, advice)
    return Finding("error", error.setting, error.value, error.problem, remedy, overrides=overrides)


def _overrides(run: RunConfig, error: SettingError) -> Iterator[str]:
    section, _, field = error.setting.rpartition(".")
    if section == f"{POLICY_LOSS}.sequence_mask":
        without = {**run.get(section), field: None}
        if _is_accepted({**run.get(POLICY_LOSS), "sequence_mask": without}, error.setting):
            yield f"{error.setting}=null"
        return
    if section != POLICY_LOSS:
        said = re.search(r"Set it to (True|False)\.", error.remedy)
        if said:
            yield run.override(error.setting, said[1])
        return
    for value in _candidates(run, field):
        if _is_accepted({**run.get(POLICY_LOSS), field: value}, error.setting):
            yield run.override(error.setting, value)
            return


def _candidates(run: RunConfig, field: str) -> Iterator[Any]:
    """Values to try: the method's own, what the field is when it is left out, and the bounds of the other settings."""
    from drpo_verl.adapters.config import TrustRegionLossConfig

    own = _of_the_method(run, field)
    if own is not None:
        yield own
    yield from (each.default for each in fields(TrustRegionLossConfig) if each.name == field)
    yield from (run.get(f"{POLICY_LOSS}.{bound}") for bound in (f"{field}_min", f"{field}_max"))


def _of_the_method(run: RunConfig, field: str) -> Any:
    """The value of a field that the group of the run's method sets; None where it sets none."""
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    paper = OmegaConf.create({"paper": OmegaConf.select(run.composed, "paper")})
    for folder in (config_dir(), *plugin_config_dirs()):
        try:
            group = OmegaConf.merge(paper, _group(folder, f"method/{run.method}"))
            value = OmegaConf.select(group, f"{POLICY_LOSS}.{field}")
        except OmegaConfBaseException:  # it refers to what another group sets
            continue
        if value is not None:
            return value
    return None


def _group(folder: Path, choice: str) -> DictConfig:
    """A choice of a group, over the choices of other groups that its defaults name; empty where it is not there."""
    from omegaconf import DictConfig, OmegaConf

    file = folder / f"{choice}.yaml"
    own = OmegaConf.load(file) if file.is_file() else OmegaConf.create()
    assert isinstance(own, DictConfig)
    defaults = [each for each in own.pop("defaults", []) if isinstance(each, DictConfig)]
    named = [f"{str(group).lstrip('/')}/{name}" for each in defaults for group, name in each.items()]
    whole = OmegaConf.merge(*(_group(folder, each) for each in named), own)
    assert isinstance(whole, DictConfig)
    return whole


def _is_accepted(settings: dict[str, Any], setting: str) -> bool:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    from drpo_verl.adapters.setting import SettingError

    try:
        instantiate(OmegaConf.create(settings), _convert_="partial")
    except InstantiationException as error:
        # Of several wrong settings one is refused at a time.
        return isinstance(error.__cause__, SettingError) and error.__cause__.setting != setting
    return True
