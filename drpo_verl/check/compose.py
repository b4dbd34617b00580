"""Composing a run's configuration as ``python -m drpo_verl.train`` would, without starting anything."""

from __future__ import annotations

from collections.abc import Sequence

from omegaconf import DictConfig


class CompositionError(ValueError):
    """Hydra can not compose it; the message is Hydra's."""


def compose_run(overrides: Sequence[str]) -> DictConfig:
    """The configuration of a run.

    Args:
        overrides: as on the command line of ``drpo_verl.train``.

    Raises:
        CompositionError: with Hydra's message.
    """
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from drpo_verl.integration import search_path

    search_path.register()
    try:
        with initialize_config_dir(str(search_path.config_dir()), version_base="1.3"):
            return compose("train", list(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        causes = [str(error).strip()]
        while (cause := error.__cause__) is not None and isinstance(cause, Exception):
            causes.append(str(cause).strip())
            error = cause  # type: ignore[assignment]
        raise CompositionError("\n".join(dict.fromkeys(causes))) from None
