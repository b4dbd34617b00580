"""Writes the tables of methods into README.md and docs/methods.md: ``python docs/methods_table.py``.

Every cell is from the code: what a row of ``drpo_verl/losses/table.py`` has chosen, and the defaults of its group in
``hydra_configs/method``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from marked import replaced
from omegaconf import OmegaConf

from drpo_verl.configuration import search_path
from drpo_verl.losses import OBJECTIVES, Objective

BEGIN = "<!-- The table is made from drpo_verl/losses/table.py by `make docs`. -->"
END = "<!-- The end of what `make docs` makes. -->"
ROOT = Path(__file__).parents[1]

_MU, _OLD = "μ", "π_old, recomputed"


def _methods() -> list[tuple[str, str, dict[str, Any]]]:
    """The groups' names, with their loss modes and their defaults, in the order of the table."""
    found = []
    for path in sorted((search_path.config_dir() / "method").glob("*.yaml")):
        group = OmegaConf.to_container(OmegaConf.load(path))
        assert isinstance(group, dict)
        actor = dict(group["actor_rollout_ref"]["actor"])
        settings = {**actor.pop("policy_loss"), **{f"actor.{name}": value for name, value in actor.items()}}
        if {"/anchor": "rollout_top_k"} in group["defaults"]:
            settings["top_k"] = 20
        found.append((path.stem, settings.pop("loss_mode"), settings))
    order = list(OBJECTIVES)
    return sorted(found, key=lambda method: (order.index(method[1]), method[0] != method[1]))


def _default(name: str, value: Any) -> str:
    interpolated = re.fullmatch(r"\$\{oc\.select:[\w.]+,(.*)\}", str(value))
    value = float(interpolated[1]) if interpolated else value
    return f"`{name}={value:g}`" if isinstance(value, int | float) else f"`{name}={value}`"


def _table(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows))


def _choices(row: Objective) -> tuple[str, str, str]:
    """Direction, weight and scope."""
    if not row.enforcement.needs_threshold:
        return "–", row.enforcement.formula, "–"
    scope = "token" if row.scope is None else row.scope.name
    return row.direction.name, row.enforcement.formula, scope


def every_method() -> str:
    """A row for each method, with all of its choices, its defaults and its source."""
    rows = []
    for name, mode, settings in _methods():
        row = OBJECTIVES[mode]
        direction, weight, scope = _choices(row)
        distance = row.geometry.name if row.enforcement.needs_threshold else "–"
        anchor = "" if direction == "–" else _OLD if row.recomputed_anchor else _MU
        source = row.source if mode == name else f"`{mode}`; {row.source}"
        if row.verl_loss:
            source = f"verl's `{row.verl_loss}`; {row.source}"
        adapted = ", δ follows a target" if row.adaptive else ""
        defaults = ", ".join(_default(*setting) for setting in settings.items()) or "–"
        rows.append([f"`{name}`", distance, direction, weight + adapted, scope, anchor or "–", defaults, source])
    return _table(["`+method=`", "distance D", "s", "weight w", "scope of x", "D is from", "defaults", "source"], rows)


def by_choices() -> str:
    """A row for each combination of direction, enforcement and scope, with the methods that have it."""
    groups: dict[tuple[str, str, str], list[str]] = {}
    for name, mode, _ in _methods():
        groups.setdefault(_choices(OBJECTIVES[mode]), []).append(f"`{name}`")
    rows = [[", ".join(names), *choices] for choices, names in groups.items()]
    return _table(["`+method=`", "s", "weight w", "scope of x"], rows)


PAGES = {ROOT / "README.md": by_choices, ROOT / "docs" / "methods.md": every_method}


def current() -> Iterator[tuple[Path, str]]:
    """Each page as it should be."""
    for path, table in PAGES.items():
        yield path, replaced(path.read_text(encoding="utf-8"), BEGIN, END, table())


def main() -> None:
    """Update the pages."""
    for path, page in current():
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
