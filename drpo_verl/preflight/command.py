"""``drpo-verl check``: compose, verify, summarise."""

from __future__ import annotations

import os
from collections.abc import Sequence

from drpo_verl.configuration.compose import CompositionError, compose_run
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ENVIRONMENT
from drpo_verl.preflight import check_run
from drpo_verl.preflight.result import Result, summarise


def check_command(overrides: Sequence[str]) -> Result:
    """Check the run that ``python -m drpo_verl.train`` would start.

    Args:
        overrides: as on its command line.
    """
    try:
        run = RunConfig(compose_run(overrides))
    except CompositionError as error:
        return Result([error.finding])
    # A run's processes get it from there (hardware=cpu); without it verl looks for a GPU when it is imported.
    platform = run.get(f"{ENVIRONMENT}.VERL_PLATFORM")
    if platform is not None:
        os.environ.setdefault("VERL_PLATFORM", str(platform))
    return summarise(run, check_run(run))
