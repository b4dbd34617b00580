"""``drpo-verl dashboard``: a saved wandb workspace of the metrics, the runs grouped by method."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any

from drpo_verl.configuration.method import LOSS_MODE, METHOD
from drpo_verl.metrics.catalogue import SECTIONS
from drpo_verl.metrics.description import Panel

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

_COLUMNS = 3
_MOST_METHODS = 20


class DashboardError(RuntimeError):
    """The workspace could not be made or saved; says why and what to do."""


def build(project: str, name: str, entity: str = "") -> Workspace:
    """The workspace, not saved anywhere yet.

    Args:
        project: the wandb project of the runs.
        name: of the workspace; without emoji, which wandb refuses.
        entity: the user or team that owns the project.

    Raises:
        DashboardError: when wandb-workspaces is not installed, or refuses the name.
    """
    try:
        import wandb_workspaces.workspaces as ws
        from wandb_workspaces import expr
    except ModuleNotFoundError as error:
        raise DashboardError(f"{error}. Install it: pip install wandb-workspaces") from error
    try:
        return ws.Workspace(
            entity=entity,
            project=project,
            name=name,
            sections=[
                ws.Section(
                    name=section.title,
                    panels=panels,
                    is_open=True,
                    layout_settings=ws.SectionLayoutSettings(columns=columns, rows=math.ceil(len(panels) / columns)),
                )
                for section in SECTIONS
                for columns in [len(section.namespaces) or _COLUMNS]
                for panels in [[plot for panel in section.charts for plot in _plots(panel)]]
            ],
            settings=ws.WorkspaceSettings(max_runs=_MOST_METHODS),
            # By the loss mode too, which tells runs of verl's own losses apart: they have no method.
            runset_settings=ws.RunsetSettings(groupby=[expr.Config(METHOD), expr.Config(LOSS_MODE)]),
        )
    except ValueError as error:
        raise DashboardError(f"wandb-workspaces refuses --name={name!r}: {error}") from error


def _plots(panel: Panel) -> Iterator[Any]:
    """A plot, or one for each factor of the panel's metrics, since wandb draws values as they are logged."""
    from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot

    unit = panel.unit or None
    if panel.kind == "bins":
        yield BarPlot(title=f"{panel.title}, last step", metrics=[*panel.metrics[0].by_bin.values()], title_x=unit)
        return
    for factor, metrics in groupby(panel.metrics, lambda metric: metric.factor):
        first, *others = metrics
        names = {"metric_regex": first.pattern} if first.pattern else {"y": [each.name for each in (first, *others)]}
        title = panel.title if factor == 1 else f"{panel.title}, times {factor:g}"
        yield LinePlot(title=title, title_y=unit, log_y=panel.log or None, **names)


def as_json(workspace: Workspace) -> str:
    """The view that wandb-workspaces would send: ``spec`` goes to the server as it is here, as a string."""
    return workspace._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)


def save(workspace: Workspace) -> None:
    """Create a workspace on the wandb server, by default for the user's default entity; wandb prints its address.

    Raises:
        DashboardError: without credentials, without a connection, or when the server refuses.
    """
    import wandb

    try:
        workspace.entity = workspace.entity or os.environ.get("WANDB_ENTITY") or wandb.Api().default_entity or ""
        workspace.save()
    except Exception as error:  # wandb's have no common class, and are others from version to version
        raise DashboardError(
            f"the workspace was not saved: {error}\nIt needs a connection to the wandb server and an account there "
            "(`wandb login`; a server of your own: WANDB_BASE_URL), and the project has to have a run. "
            "--dry-run prints the workspace without any of it."
        ) from error
