"""Composing a run's configuration as ``python -m drpo_verl.train`` would, without starting anything."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf

from drpo_verl.configuration.finding import Finding

if TYPE_CHECKING:
    from hydra.core.config_loader import ConfigLoader
    from hydra.core.override_parser.types import Override
    from omegaconf.errors import OmegaConfBaseException

_MOST_NAMED = 3
_SECTIONS = (
    "trainer", "data", "algorithm", "reward", "run", "paper", "check", "prepare", "actor_rollout_ref",
    "actor_rollout_ref.actor", "actor_rollout_ref.model", "actor_rollout_ref.rollout", "actor_rollout_ref.ref",
    "actor_rollout_ref.actor.policy_loss", "actor_rollout_ref.actor.optim",
)  # fmt: skip
"""What a value in their place would leave nothing of."""


class CompositionError(ValueError):
    """Hydra can not compose it.

    Args:
        finding: which override is wrong, and what to write instead.
    """

    def __init__(self, finding: Finding) -> None:
        super().__init__(str(finding))
        self.finding = replace(finding, rule="composition")


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run.

    Args:
        overrides: as on the command line of ``drpo_verl.train``.

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
            loader = GlobalHydra.instance().config_loader()
            raise CompositionError(_explain(error, overrides, loader)) from error
    for name in _SECTIONS:
        if not isinstance(value := OmegaConf.select(config, name), DictConfig):
            message, remedy = "is not a section.", f"Set what is in it one by one: {name}.SETTING=VALUE."
            raise CompositionError(Finding("error", name, value, message, remedy))
    # A misspelt name in an experiment's file would otherwise leave the methods at their defaults, unnoticed.
    known = [f"paper.{name}" for name in OmegaConf.load(search_path.config_dir() / "train.yaml").paper]
    for name in (f"paper.{name}" for name in config.paper):
        if name not in known:
            near = get_close_matches(name, known, n=_MOST_NAMED) or known
            raise CompositionError(Finding("error", name, None, "is read by no method.", _meant(near)))
    return config


def _explain(error: Exception, overrides: Sequence[str], loader: ConfigLoader) -> Finding:
    """What is wrong with which override; in Hydra's own words where nothing better is known."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import MissingConfigException, OverrideParseException
    from omegaconf.errors import ConfigAttributeError, ConfigKeyError

    if isinstance(error, OverrideParseException):
        return _unreadable(error.override, _first_line(error), loader)
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    groups = loader.list_groups("")
    for override in parsed:
        name, value = override.key_or_group, override.value()
        if isinstance(error, MissingConfigException) and f"{error.missing_cfg_file}/".startswith(f"{name}/{value}/"):
            return _unknown_choice(name, str(value), str(error.missing_cfg_file), loader)
        if isinstance(error.__cause__, ConfigAttributeError | ConfigKeyError) and f"'{name}'" in str(error):
            return _unknown_setting(override, error.__cause__, groups)
        if override.is_add() and (f"values for {name}." in str(error) or f"already at '{name}'" in str(error)):
            return Finding("error", f"+{name}", value, "is set already.", f"Leave out the +: {name}={value}")
        if name in groups and value is None and not override.is_delete():
            return _unknown_choice(name, "null", f"{name}/null", loader)
    blamed = (
        each.input_line for each in parsed
        if f"'{each.key_or_group}'" in str(error) or str(each.input_line) in str(error)
    )  # fmt: skip
    named = next(blamed, None) or " ".join(overrides) or "train.yaml"
    return Finding("error", named, None, f"is refused by Hydra: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _unreadable(override: str, problem: str, loader: ConfigLoader) -> Finding:
    if "=" in override or override.startswith("~"):
        return Finding("error", override, None, f"can not be read: {problem}.", "Is a quote or a bracket missing?")
    choices = [f"{group}={override}" for group in _groups_with(loader, override)]
    return Finding("error", override, None, "is not of the form name=value.", _meant(choices))


def _unknown_choice(group: str, value: str, missing: str, loader: ConfigLoader) -> Finding:
    if missing != f"{group}/{value}":  # a part of a choice, one for each backend that it goes with
        backends = " or ".join(_choices(loader, f"{group}/{value}"))
        message = f"does not go with backend={missing.rpartition('/')[2]}."
        return Finding("error", group, value, message, f"It needs backend={backends}.")
    choices = _choices(loader, group)
    near = get_close_matches(value, choices, n=_MOST_NAMED)
    near += [each for each in choices if value and value in each and each not in near]
    elsewhere = [f"{other}={value}" for other in _groups_with(loader, value)]
    return Finding(
        "error", group, value, f"does not exist. The choices are: {', '.join(choices)}.",
        _meant([*near[:_MOST_NAMED], *elsewhere]) or "Choose one of them.",
    )  # fmt: skip


def _unknown_setting(override: Override, cause: OmegaConfBaseException, groups: Sequence[str]) -> Finding:
    # OmegaConf's own error has the section in which the name was looked for, and through it all settings.
    root = cause.parent_node._get_root() if cause.parent_node is not None else OmegaConf.create()
    names = [*groups, *_names(OmegaConf.to_container(root, resolve=False), "")]
    name, value = override.key_or_group, override.value()
    inside = [each for each in names if each.endswith(f".{name}")]
    near = inside or get_close_matches(name, names, n=_MOST_NAMED, cutoff=0.7)
    return Finding(
        "error", name, value, "is not a setting.", _meant(near[:_MOST_NAMED]) or
        f"A new one is added with +{override.input_line}. `python -m drpo_verl.train --cfg job` prints all settings.",
    )  # fmt: skip


def _meant(names: Sequence[str]) -> str:
    return f"Did you mean {' or '.join(filter(None, (', '.join(names[:-1]), names[-1])))}?" if names else ""


def _choices(loader: ConfigLoader, group: str) -> list[str]:
    """Those of a group, ``drpo/qwen3_4b`` among them; a folder named as a choice is that choice's own."""
    from hydra.core.object_type import ObjectType

    choices: list[str] = loader.get_group_options(group, ObjectType.CONFIG)
    for folder in loader.get_group_options(group, ObjectType.GROUP):
        if folder not in choices:
            choices = [*choices, *(f"{folder}/{each}" for each in _choices(loader, f"{group}/{folder}"))]
    return choices


def _groups_with(loader: ConfigLoader, choice: str) -> list[str]:
    return [group for group in loader.list_groups("") if choice in _choices(loader, group)]


def _names(node: Any, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from _names(value, f"{prefix}{key}.")
