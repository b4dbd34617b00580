"""What is found wrong with one setting of a configuration, and the overrides that mend it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Level = Literal["error", "warning", "note"]
"""An error stops a run: it would fail, or do something else than it says. A warning is to be read before a run; a note
is what one should know about it."""

LEVELS: tuple[Level, ...] = ("error", "warning", "note")


@dataclass(frozen=True)
class Finding:
    """One thing about a configuration.

    Args:
        level: what it means for a run.
        setting: the full name of the setting that it is about.
        value: the setting's value; None when it is not set.
        message: what is wrong, to be read after ``setting=value``.
        remedy: what to change, in sentences; see ``remedy_sentence``.
        rule: the name of the rule that found it.
        overrides: changes of which each makes the finding go away, as typed on a command line. One that changes several
            settings has spaces between them. Empty where no setting mends it (a package is not installed), or where
            only the user knows the value (a path).
    """

    level: Level
    setting: str
    value: Any
    message: str
    remedy: str = ""
    rule: str = ""
    overrides: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        """The setting and its value, ``setting=value``, as on a command line."""
        return self.setting if self.value is None else f"{self.setting}={self.value!r}"

    def __str__(self) -> str:
        """Place, message and remedy in one line."""
        return f"{self.place}{',' if self.message.startswith('but ') else ''} {self.message} {self.remedy}".rstrip()


def remedy_sentence(setting: str, overrides: tuple[str, ...], advice: str = "") -> str:
    """What to change, in words, so that sentence and overrides can not differ.

    Args:
        setting: the one that is wrong, which the sentence calls "it".
        overrides: see ``Finding``.
        advice: further sentences.
    """
    changes = []
    for override in overrides:
        name, _, value = override.lstrip("+").partition("=")
        if override.startswith("~"):
            changes.append(f"remove it with {override}")
        else:
            is_own = name == setting and " " not in value
            changes.append(f"set it to {value}" if is_own else f"set {' and '.join(override.split(' '))}")
    sentence = ", or ".join(changes)
    return " ".join(filter(None, (f"{sentence[:1].upper()}{sentence[1:]}." if sentence else "", advice)))
