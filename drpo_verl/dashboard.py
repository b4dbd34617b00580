"""``drpo-verl dashboard``: a saved wandb workspace of the metrics, the runs grouped by method."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from drpo_verl.configuration.method import LOSS_MODE, METHOD
from drpo_verl.metrics.bins import PROBABILITY_BINS

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot
    from wandb_workspaces.workspaces import Workspace

_COLUMNS = 3
_MOST_METHODS = 20


class DashboardError(RuntimeError):
    """The workspace could not be made or saved; says why and what to do."""


@dataclass(frozen=True)
class Lines:
    """Metrics over the training steps.

    Args:
        title: of the panel.
        metrics: their names.
        unit: of the vertical axis.
        log: whether that axis is logarithmic.
    """

    title: str
    metrics: tuple[str, ...]
    unit: str
    log: bool = False


@dataclass(frozen=True)
class Matching:
    """Every metric whose name matches, over the training steps: for names that a task decides.

    Args:
        title: of the panel.
        pattern: a regular expression.
        unit: of the vertical axis.
    """

    title: str
    pattern: str
    unit: str


@dataclass(frozen=True)
class Bars:
    """Metrics of the last step side by side.

    Args:
        title: of the panel.
        metrics: their names.
        unit: of the values.
    """

    title: str
    metrics: tuple[str, ...]
    unit: str


@dataclass(frozen=True)
class Section:
    """Panels under one heading."""

    name: str
    panels: tuple[Lines | Matching | Bars, ...]


def _named(namespace: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{namespace}/{name}" for name in names)


def _bins(namespace: str, metric: str, sign: str = "") -> tuple[str, ...]:
    return _named(f"{namespace}_by_prob", *(f"{metric}_{each}{sign}" for each in PROBABILITY_BINS))


def _distance(namespace: str) -> tuple[Lines | Bars, ...]:
    # The same series twice: between the engines at the same weights, and what the updates since the rollout add.
    return (
        Lines("|π − μ| of sampled tokens", _named(namespace, *(f"abs_prob_diff_{each}" for each in
              ("mean", "p50", "p99", "max"))), "probability", log=True),
        Lines("KL(μ ‖ π), two estimates", _named(namespace, "kl_k1", "kl_k3"), "nats a token"),
        Lines("χ² of π against μ", _named(namespace, "chi2"), "", log=True),
        Lines("Effective sample size", _named(namespace, "ess"), "share of tokens"),
        Lines("π/μ", _named(namespace, "ratio_p01", "ratio_p50", "ratio_p99", "ratio_max"), "ratio", log=True),
        Lines("Correlation of π and μ", _named(namespace, "correlation"), ""),
        Lines("|π − μ| by the advantage's sign", _named(namespace, "abs_prob_diff_mean_positive_advantage",
              "abs_prob_diff_mean_negative_advantage"), "probability", log=True),
        Bars("|π − μ| by μ, last step", _bins(namespace, "abs_prob_diff"), "probability"),
        Bars("The same of positive advantage", _bins(namespace, "abs_prob_diff", "_positive_advantage"), "probability"),
        Bars("The same of negative advantage", _bins(namespace, "abs_prob_diff", "_negative_advantage"), "probability"),
        Bars("Tokens by μ, last step", _bins(namespace, "share"), "share of tokens"),
    )  # fmt: skip


SECTIONS = (
    Section("Reward", (
        Lines("Reward", ("critic/score/mean",), "mean score"),
        Matching("Held-out problems", "^val-core/.*", "score"),
        Lines("Response length", ("response_length/mean",), "tokens"),
        Lines("log μ of sampled tokens (minus the entropy)", ("mismatch/behaviour_log_prob_mean",), "nats a token"),
        Lines("Entropy, where verl computes it", ("actor/entropy",), "nats a token"),
    )),
    Section("Trust region", (
        Lines("Tokens outside", ("trust_region/outside_frac",), "share of tokens"),
        Lines("Tokens outside, by the advantage's sign", _named("trust_region", "outside_frac_positive_advantage",
              "outside_frac_negative_advantage"), "share of tokens"),
        Lines("Gradient weight w", _named("trust_region", "weight_mean", "weight_min"), "w; below 0: corrected"),
        Lines("Tokens attenuated, and corrected", _named("trust_region", "attenuated_frac", "corrective_frac"),
              "share of tokens"),
        Lines("Tokens moving away from μ", ("trust_region/diverging_frac",), "share of tokens"),
        Lines("Gradient removed", ("trust_region/gradient_removed_frac",), "share of its norm"),
        Lines("Threshold δ, where it moves", ("trust_region/delta",), "the method's"),
        Lines("Gradient norm", ("actor/grad_norm",), ""),
    )),
    Section("Mismatch: two engines, the same weights", (
        *_distance("inference_mismatch"),
        Lines("All updates of a step: |π − μ|", _named("mismatch", "abs_prob_diff_mean", "abs_prob_diff_max"),
              "probability", log=True),
        Lines("All updates of a step: KL(μ ‖ π)", ("mismatch/kl",), "nats a token"),
        Lines("All updates of a step: largest π/μ", ("mismatch/ratio_max",), "ratio", log=True),
        Lines("Tokens with μ ≤ 0.01", ("mismatch/low_prob_frac",), "share of tokens"),
    )),
    Section("Drift: what the updates since the rollout add", (
        *_distance("policy_drift"),
        Lines(
            "Staleness of the samples", _named("training/off_policy/trajectory_staleness", "mean", "max"),
            "weight versions",
        ),
    )),
    Section("Throughput", (
        Lines("Time of a step", _named("timing_s", "step", "gen", "update_actor", "update_weights"), "s"),
        Lines("Throughput", ("perf/throughput",), "tokens / s / worker"),
    )),
)  # fmt: skip


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
                    name=section.name,
                    panels=[_panel(panel) for panel in section.panels],
                    is_open=True,
                    layout_settings=ws.SectionLayoutSettings(
                        columns=_COLUMNS, rows=math.ceil(len(section.panels) / _COLUMNS)
                    ),
                )
                for section in SECTIONS
            ],
            settings=ws.WorkspaceSettings(max_runs=_MOST_METHODS),
            # By the loss mode too, which tells runs of verl's own losses apart: they have no method.
            runset_settings=ws.RunsetSettings(groupby=[expr.Config(METHOD), expr.Config(LOSS_MODE)]),
        )
    except ValueError as error:
        raise DashboardError(f"wandb-workspaces refuses --name={name!r}: {error}") from error


def _panel(panel: Lines | Matching | Bars) -> BarPlot | LinePlot:
    from wandb_workspaces.reports.v2.interface import BarPlot, LinePlot

    if isinstance(panel, Bars):
        return BarPlot(title=panel.title, metrics=list(panel.metrics), title_x=panel.unit or None)
    if isinstance(panel, Matching):
        return LinePlot(title=panel.title, metric_regex=panel.pattern, title_y=panel.unit)
    return LinePlot(
        title=panel.title, y=list(panel.metrics), title_y=panel.unit or None, log_y=True if panel.log else None
    )


def as_json(workspace: Workspace) -> str:
    """The view that wandb-workspaces would send: ``spec`` goes to the server as it is here, as a string."""
    return workspace._to_model().model_dump_json(by_alias=True, exclude_none=True, indent=2)


def save(workspace: Workspace) -> None:
    """Create the workspace on the wandb server; wandb prints its address.

    Args:
        workspace: from ``build``; without an entity, it gets the user's default one.

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
