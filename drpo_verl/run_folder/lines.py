"""Files with a JSON value in each line, as they are found after a run, or while it is still writing them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn


def refuse(problem: str) -> NoReturn:
    """Take no line that can not be read.

    Raises:
        ValueError: with what is wrong with the line.
    """
    raise ValueError(problem)


@dataclass(frozen=True)
class Line:
    """A line of a file that is not blank: its number, from 1, and its bytes."""

    number: int
    text: bytes


class LineReader:
    """Reads the lines of a file, which need not exist yet, as they are written.

    Only a line feed ends a line: names and texts may hold any other character that Unicode takes for an end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._number = 0

    def new(self) -> list[Line]:
        """The lines that have come to their end since the last call."""
        *finished, _ = self._unread().split(b"\n")
        self._offset += sum(len(line) + 1 for line in finished)
        first = self._number + 1
        self._number += len(finished)
        return [Line(number, line) for number, line in enumerate(finished, first) if line.strip()]

    def unfinished(self) -> Line | None:
        """The line at the end of the file that has no end itself; None when there is none."""
        text = self._unread().rpartition(b"\n")[2]
        return Line(self._number + 1, text) if text.strip() else None

    def _unread(self) -> bytes:
        if not self._path.exists():
            return b""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            return file.read()


def parse_json(line: bytes) -> Any:
    """The value of a line.

    Raises:
        ValueError: saying why there is none.
    """
    try:
        return json.loads(line.decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"is not UTF-8 (byte {error.start + 1} is 0x{line[error.start]:02x})") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg}, at character {error.pos + 1})") from error
    except (ValueError, RecursionError) as error:  # a number of too many digits, too many brackets
        raise ValueError(f"is not JSON that can be read ({type(error).__name__})") from error
