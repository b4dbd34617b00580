"""``drpo-verl study``: make the runs of a study that are not there yet, and write its tables."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from drpo_verl.configuration.compose import CompositionError, compose_run
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.errors import UserError
from drpo_verl.preflight import check_run
from drpo_verl.study.execute import OUTPUT_FILE, Execution, Outcome, outcome, overrides_of
from drpo_verl.study.plan import Plan, PlannedRun, read_plan
from drpo_verl.study.results import RUNS_FILE, STEPS_FILE, collect, recorded, write


def study(
    file: Path,
    *,
    runs_folder: Path,
    out: Path,
    parallel: int,
    only: str,
    retry_failed: bool,
    collect_only: bool,
    console: Console,
) -> int:
    """Make the runs of a study that are not there yet, and write its tables, after each run anew.

    Args:
        file: of the study.
        runs_folder: gets a folder for the study, and in it one for each run.
        out: the folder of the tables.
        parallel: how many runs at a time.
        only: make only runs with this in their names.
        retry_failed: make failed runs again, which otherwise are a result like any other.
        collect_only: make no run.
        console: where the progress is shown.

    Returns:
        How many of the runs have failed.

    Raises:
        UserError: when the file is no study, or one of its runs would be refused.
    """
    plan = read_plan(file)
    folder = (runs_folder / plan.name).absolute()
    if parallel < 1:
        raise UserError(f"--parallel={parallel} must be at least 1.")
    chosen = [run for run in plan.runs if only in run.name]
    if not chosen:
        raise UserError(f"--only={only!r} is in the name of no run, e.g. {plan.runs[0].name}.")

    def is_there(run: PlannedRun) -> bool:
        ended = outcome(folder, plan, run)
        status = of_tables.get(run.name) if ended is None else ended.status
        return status is not None and not (retry_failed and status == "failed")

    of_tables = recorded(plan, out)
    missing = [] if collect_only else [run for run in chosen if not is_there(run)]
    console.print(
        f"{plan.name}: {len(plan.runs)} runs, {len(missing)} to be made now, in {folder}",
        highlight=False,
        soft_wrap=True,
    )
    cards = _check(plan, missing, folder, console)
    if missing:
        _make(plan, missing, folder, out, parallel, cards, console)
    tables = collect(plan, folder, out)
    write(tables, out)
    failed = [row for row in tables[0].to_pylist() if row["status"] == "failed"]
    for row in failed:
        console.print(Text(f"failed: {row['run']}: {row['why']}", style="yellow"), soft_wrap=True)
    console.print(f"{tables[0].num_rows} of {len(plan.runs)} runs: {out / RUNS_FILE}, {out / STEPS_FILE}",
                  highlight=False, soft_wrap=True)  # fmt: skip
    return len(failed)


def _check(plan: Plan, runs: list[PlannedRun], folder: Path, console: Console) -> int:
    """Refuse the study if one of its runs would be refused; the number of cards that a run takes."""
    different = {run.overrides: run for run in runs}.values()
    cards = 0
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        for run in progress.track(list(different), description="checking"):
            try:
                config = RunConfig(compose_run(list(overrides_of(plan, run, folder))))
            except CompositionError as error:
                raise UserError(f"run {run.name}: {error}") from error
            if errors := [finding for finding in check_run(config) if finding.level == "error"]:
                raise UserError(f"run {run.name}: {errors[0]}")
            if config.get("trainer.device") == "cuda":
                cards = max(cards, config.world)
    return cards


def _make(
    plan: Plan, runs: list[PlannedRun], folder: Path, out: Path, parallel: int, cards: int, console: Console
) -> None:
    columns = (
        TextColumn("[bold]{task.description}"), BarColumn(bar_width=30), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("left"), TimeRemainingColumn(elapsed_when_finished=True),
    )  # fmt: skip
    # The time left is a run's mean time times the runs that are left.
    with Progress(*columns, console=console, speed_estimate_period=24 * 3600.0) as progress:
        task = progress.add_task(plan.name, total=len(runs))

        def made(run: PlannedRun, ended: Outcome) -> None:
            log = "" if ended.status == "finished" else f": {ended.why} ({folder / run.name / OUTPUT_FILE})"
            progress.console.print(
                f"{run.name}: {ended.status} in {ended.seconds:.0f} s{log}", highlight=False, soft_wrap=True
            )
            write(collect(plan, folder, out), out)
            progress.advance(task)

        Execution(plan, folder, parallel=parallel, cards=cards).make(runs, made)
