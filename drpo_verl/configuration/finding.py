"""What the check says about one setting."""

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
        setting: the full name of the setting to change.
        value: its value; None when it is not set.
        message: what is wrong, to be read after ``setting=value``.
        remedy: what to change, as a sentence.
        rule: the name of the rule that found it.
    """

    level: Level
    setting: str
    value: Any
    message: str
    remedy: str = ""
    rule: str = ""

    @property
    def place(self) -> str:
        """``setting=value``, as on a command line."""
        return self.setting if self.value is None else f"{self.setting}={self.value!r}"

    def __str__(self) -> str:
        """One line with all of it."""
        return f"{self.place}{',' if self.message.startswith('but ') else ''} {self.message} {self.remedy}".rstrip()
