"""Alerts in the process that logs: verl's ``Tracking`` sees every step's metrics, and has wandb's run beside it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from drpo_verl.alerts import SECTION, Monitor, parse_alerts
from drpo_verl.integration import seams


def with_alerts(tracking: type[Any]) -> type[Any]:
    """verl's ``Tracking``, which also announces what the configuration's section ``alerts`` asks for."""

    class Tracking(tracking):
        __doc__ = tracking.__doc__

        def __init__(
            self, project_name: Any, experiment_name: Any, default_backend: Any = "console", config: Any = None
        ) -> None:
            section = config.get(SECTION) if isinstance(config, Mapping) else None
            self._monitor = Monitor(parse_alerts(section))
            super().__init__(project_name, experiment_name, default_backend, config)

        def log(self, data: dict[str, Any], step: int, *args: Any, **kwargs: Any) -> None:
            super().log(data, step, *args, **kwargs)
            for notice in self._monitor.observe(step, data):
                seams.warn(notice.text)
                # Of whoever started it: verl's own backend, or the user. Without any, wandb is not imported.
                run = getattr(sys.modules.get("wandb"), "run", None)
                if run is not None:
                    run.alert(title=notice.title, text=notice.text, level=notice.level)

    return Tracking
