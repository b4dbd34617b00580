"""verl's ``Tracking``, which logs each step's metrics, with alerts and the table of worst tokens."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import astuple, fields
from itertools import takewhile
from pathlib import Path
from typing import Any

from drpo_verl import seams
from drpo_verl.metrics.alerts import SECTION, Monitor, parse_alerts
from drpo_verl.run_folder import worst_tokens

WORST_TOKENS = "worst_tokens"
"""The key in wandb of the table of worst tokens."""


class _WorstTokensInWandb:
    """A copy in wandb of the table of worst tokens, to which each step adds its line.

    The actor's worker writes the file; where that is another machine without a shared folder, there is nothing to copy.
    """

    def __init__(self) -> None:
        self._path = os.environ.get(worst_tokens.PATH_VARIABLE)
        self._latest: worst_tokens.WorstToken | None = None
        self._table: Any = None
        self._left_out: set[str] = set()

    def _warn_once(self, problem: str) -> None:
        if problem not in self._left_out:  # the file is read again at each step
            self._left_out.add(problem)
            seams.warn(f"left out: {problem}")

    def update(self, run: Any, step: int) -> None:
        if self._path is None:
            return
        # Not by their step, of which an asynchronous trainer's updates share one.
        latest_first = reversed(worst_tokens.read(Path(self._path), self._warn_once))
        new = [*takewhile(lambda line: line != self._latest, latest_first)][::-1]
        if not new:
            return
        self._latest = new[-1]
        if self._table is None:
            import wandb

            columns: list[str | int] = [column.name for column in fields(worst_tokens.WorstToken)]
            self._table = wandb.Table(columns=columns, log_mode="INCREMENTAL")
        for line in new:
            self._table.add_data(*astuple(line))
        run.log({WORST_TOKENS: self._table}, step=step)


def with_alerts(tracking: type[Any]) -> type[Any]:
    """Make of verl's ``Tracking`` a class that also announces what the configuration's section ``alerts`` asks for.

    Where wandb has a run, the alerts and the table of worst tokens go there too.
    """

    class Tracking(tracking):
        __doc__ = tracking.__doc__

        def __init__(
            self, project_name: Any, experiment_name: Any, default_backend: Any = "console", config: Any = None
        ) -> None:
            section = config.get(SECTION) if isinstance(config, Mapping) else None
            self._monitor = Monitor(parse_alerts(section))
            self._worst_tokens = _WorstTokensInWandb()
            super().__init__(project_name, experiment_name, default_backend, config)

        def log(self, data: dict[str, Any], step: int, *args: Any, **kwargs: Any) -> None:
            super().log(data, step, *args, **kwargs)
            # The run of whoever started one: verl's own backend, or the user. Without any, wandb is not imported.
            run = getattr(sys.modules.get("wandb"), "run", None)
            if run is not None:
                self._worst_tokens.update(run, step)
            for notice in self._monitor.observe(step, data):
                seams.warn(notice.text)
                if run is not None:
                    run.alert(title=notice.title, text=notice.text, level=notice.level)

    return Tracking
