"""Composing a run's configuration as ``python -m drpo_verl.train`` would, without starting anything."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from drpo_verl.configuration.finding import Finding

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override

IsRefused = Callable[[DictConfig, str], bool]

_MOST_SUGGESTIONS = 3
_SECTIONS = (
    "trainer", "data", "algorithm", "reward", "run", "paper", "check", "prepare", "actor_rollout_ref",
    "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout", "actor_rollout_ref.ref",
    "actor_rollout_ref.actor.policy_loss", "actor_rollout_ref.actor.optim",
)  # fmt: skip
"""The sections that the rules and verl read: a value in the place of one would leave nothing of it."""


class CompositionError(ValueError):
    """Hydra can not compose the configuration.

    Args:
        finding: which override is wrong, and what to write instead.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = replace(finding, rule="composition")


def compose_run(overrides: Sequence[str], is_refused: IsRefused = lambda config, setting: False) -> DictConfig:
    """The configuration of a run.

    Args:
        overrides: as on the command line of ``drpo_verl.train``.
        is_refused: whether a configuration's method refuses a setting, which is then not suggested for a misspelt one.

    Raises:
        CompositionError: when Hydra refuses them.
    """
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from drpo_verl.configuration import search_path

    search_path.register()
    with initialize_config_dir(str(search_path.config_dir()), version_base="1.3"):
        try:
            config = compose("train", list(overrides))
        except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: group=null
            finding = _explanation(error, overrides, GlobalHydra.instance().config_loader(), is_refused)
            raise CompositionError(finding) from error
    for name in _SECTIONS:
        if not isinstance(value := OmegaConf.select(config, name), DictConfig):
            remedy = f"Set what is in it one by one: {name}.SETTING=VALUE."
            raise CompositionError(Finding("error", name, value, "is not a section.", remedy))
    # A misspelt name in an experiment's file would otherwise leave the methods at their defaults, unnoticed.
    known = [f"paper.{name}" for name in OmegaConf.load(search_path.config_dir() / "train.yaml").paper]
    for name in (f"paper.{name}" for name in config.paper):
        if name not in known:
            near = get_close_matches(name, known, n=_MOST_SUGGESTIONS) or known
            raise CompositionError(Finding("error", name, None, "is read by no method.", _suggestion(near)))
    return config


def _explanation(error: Exception, overrides: Sequence[str], loader: ConfigLoader, is_refused: IsRefused) -> Finding:
    """Names the override that does not exist, with the nearest ones that do; else Hydra's own words."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import MissingConfigException, OverrideParseException

    groups = {group: _choices(loader, group) for group in loader.list_groups("")}
    if isinstance(error, OverrideParseException):
        meant = [f"{group}={error.override}" for group, choices in groups.items() if error.override in choices]
        remedy = _suggestion(meant) or "Is a quote or a bracket missing?"
        return Finding("error", error.override, None, "can not be read as name=value.", remedy)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    missing_file = str(error.missing_cfg_file) if isinstance(error, MissingConfigException) else ""
    config = _composed([each for each in parsed if each.key_or_group in groups and not each.is_delete()])
    known = list(_names(OmegaConf.to_container(config, resolve=False), ""))
    for override in parsed:
        name, value = override.key_or_group, str(override.input_line).partition("=")[2].strip("'\"")
        if override.is_add() and name in [*groups, *known]:
            remedy = f"Leave out the +: {name}={value}"
            return Finding("error", f"+{name}", override.value(), "is set already.", remedy)
        if name in groups and not override.is_delete() and value not in groups[name]:
            elsewhere = [f"{other}={value}" for other, choices in groups.items() if value in choices]
            near = [*get_close_matches(value, groups[name], n=_MOST_SUGGESTIONS, cutoff=0.4), *elsewhere]
            message = f"does not exist. The choices are: {', '.join(groups[name])}."
            return Finding("error", name, value, message, _suggestion(near) or "Choose one of them.")
        if missing_file.startswith(f"{name}/{value}/"):  # a choice has a part for each backend that it goes with
            message = f"does not go with backend={missing_file.rpartition('/')[2]}."
            backends = " or ".join(_choices(loader, f"{name}/{value}"))
            return Finding("error", name, value, message, f"It needs backend={backends}.")
        if known and not (name in [*groups, *known] or override.is_add() or override.is_force_add()):
            near = [each for each in known if each.endswith(f".{name}")]
            near = near or _nearest(name, [each for each in (*groups, *known) if not is_refused(config, each)])
            remedy = _suggestion(near[:_MOST_SUGGESTIONS]) or f"A new one is added with +{override.input_line}."
            return Finding("error", name, override.value(), "is not a setting.", remedy)
    first_line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return Finding("error", " ".join(overrides), None, f"is refused by Hydra: {first_line}")


def _suggestion(names: Sequence[str]) -> str:
    return f"Did you mean {' or '.join(filter(None, (', '.join(names[:-1]), names[-1])))}?" if names else ""


def _nearest(name: str, known: Sequence[str]) -> list[str]:
    """The known names that a misspelt one may have been meant to be, the nearest first."""
    section, _, key = name.rpartition(".")
    if section not in known:
        return get_close_matches(name, known, n=_MOST_SUGGESTIONS, cutoff=0.7)
    # Of two names in one long section, all but the last part is alike, which would make any two of them near.
    beside = [each.removeprefix(f"{section}.") for each in known if each.rpartition(".")[0] == section]
    return [f"{section}.{each}" for each in get_close_matches(key, beside, n=_MOST_SUGGESTIONS, cutoff=0.7)]


def _composed(choices: Sequence[Override]) -> DictConfig:
    """The configuration of some choices of groups, Hydra's own section included; empty where it can not be composed."""
    from hydra import compose
    from hydra.errors import HydraException

    try:
        return compose("train", [str(each.input_line) for each in choices], return_hydra_config=True)
    except (HydraException, ValueError):
        return OmegaConf.create()


def _names(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _names(value, f"{prefix}{key}.")


def _choices(loader: ConfigLoader, group: str) -> list[str]:
    """The choices of a group, ``drpo/qwen3_4b`` among them; a folder named as a choice is that choice's own."""
    from hydra.core.object_type import ObjectType

    choices: list[str] = loader.get_group_options(group, ObjectType.CONFIG)
    for folder in loader.get_group_options(group, ObjectType.GROUP):
        if folder not in choices:
            choices = [*choices, *(f"{folder}/{each}" for each in _choices(loader, f"{group}/{folder}"))]
    return choices
