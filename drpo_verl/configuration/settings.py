"""The settings of a composed configuration by name, and findings about them."""

from __future__ import annotations

from functools import cached_property, partialmethod
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from drpo_verl.configuration.finding import Finding, Level, remedy_sentence
from drpo_verl.configuration.numbers import NUMBERS, Number, WrongNumberError


class Settings:
    """Settings by their full names, with dots: ``data.train_batch_size``.

    Args:
        composed: a whole run's configuration; any section may be missing.
    """

    def __init__(self, composed: DictConfig) -> None:
        self.composed = composed
        self.unresolved: dict[str, Exception] = {}
        """Settings whose interpolation failed, and why."""
        self._values = self._resolve(composed, "")

    def _resolve(self, node: Any, path: str) -> Any:
        # As OmegaConf.to_container(resolve=True), which stops at the first setting that does not resolve.
        if isinstance(node, DictConfig):
            return {str(key): self._child(node, key, f"{path}{key!s}") for key in node}
        if isinstance(node, ListConfig):
            return [self._child(node, index, f"{path}{index}") for index in range(len(node))]
        return node

    def _child(self, node: DictConfig | ListConfig, key: Any, path: str) -> Any:
        if OmegaConf.is_missing(node, key):
            return None
        try:
            value = node[key]
        except OmegaConfBaseException as error:
            self.unresolved[path] = error
            return None
        return self._resolve(value, f"{path}.")

    def get(self, name: str, default: Any = None) -> Any:
        """A setting's value.

        Args:
            name: the setting's full name.
            default: for a setting that is null or not there.
        """
        node = self._values
        for part in name.split("."):
            if not isinstance(node, dict) or part not in node:
                return default
            node = node[part]
        return default if node is None else node

    def has(self, name: str) -> bool:
        """Whether the configuration has a setting, be it null."""
        section, _, key = name.rpartition(".")
        return key in (self.get(section) or ())

    def reference(self, name: str) -> str:
        """The text of the interpolation that a setting is; empty for one with a value of its own."""
        section, _, key = name.rpartition(".")
        node = OmegaConf.select(self.composed, section)
        raw: Any = OmegaConf.to_container(node, resolve=False)
        return str(raw[key]) if OmegaConf.is_interpolation(node, key) else ""

    def number(self, name: str) -> float:
        """The value of a setting that has to be a number, or its default.

        Args:
            name: a key of ``NUMBERS``.

        Raises:
            WrongNumberError: when it is none.
        """
        value: float = self.get(name, NUMBERS[name].default)
        if not NUMBERS[name].accepts(value):
            raise WrongNumberError(name)
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        """The value of a setting that has to be a whole number.

        Args:
            name: a key of ``NUMBERS``.
            default: instead of the one in ``NUMBERS``, for a setting that is null or not there.

        Raises:
            WrongNumberError: when it is none.
        """
        return default if default is not None and self.get(name) is None else int(self.number(name))

    @cached_property
    def wrong_numbers(self) -> dict[str, Number]:
        """The settings that are not the numbers that they have to be, and what they have to be."""
        return {name: each for name, each in NUMBERS.items() if not each.accepts(self.get(name, each.default))}

    def override(self, name: str, value: object) -> str:
        """A setting with a value as on a command line, with the + that Hydra asks for where the setting is new."""
        return f"{'' if self.has(name) else '+'}{name}={'null' if value is None else value}"

    def finding(self, level: Level, name: str, message: str, *overrides: str, advice: str = "") -> Finding:
        """A finding about a setting with its value.

        Args:
            level: what it means for a run.
            name: the setting.
            message: what is wrong, to be read after ``setting=value``.
            overrides: of which each mends it; see ``Finding``.
            advice: what else there is to say about the remedy, as sentences.
        """
        remedy = remedy_sentence(name, overrides, advice)
        return Finding(level, name, self.get(name), message, remedy, overrides=overrides)

    error = partialmethod(finding, "error")
    """An error about a setting; see ``finding``."""
    warning = partialmethod(finding, "warning")
    """A warning about a setting; see ``finding``."""
    note = partialmethod(finding, "note")
    """A note about a setting; see ``finding``."""
