"""``drpo-verl``: the tools beside training. Each command imports what it needs when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    name="drpo-verl",
    help="Trust regions for LLM reinforcement learning on verl: look at what runs did.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


@app.callback()
def _root() -> None:
    """Makes every function below a subcommand, however few there are."""


@app.command()
def dashboard(
    project: Annotated[str, typer.Option(help="The wandb project of the runs.")] = "drpo-verl",
    entity: Annotated[str, typer.Option(help="The user or team that owns it; by default, yours.")] = "",
    name: Annotated[str, typer.Option(help="What to call the workspace.")] = "Trust regions",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print it as JSON, without a server.")] = False,
) -> None:
    """Create a saved wandb workspace: reward, trust region, mismatch, drift, throughput; the runs grouped by method.

    Example: `drpo-verl dashboard --entity my-team --project drpo-verl`
    """
    from drpo_verl import dashboard as dashboards

    try:
        workspace = dashboards.build(project=project, name=name, entity=entity)
        if dry_run:
            typer.echo(dashboards.as_json(workspace))
        else:
            dashboards.save(workspace)
    except dashboards.DashboardError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders (`run.dir`) or metrics files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    group_by: Annotated[
        str,
        typer.Option(
            help="What is drawn as one line, with a band over its runs: `method` for runs that share the method and "
            "every setting but the seeds, or a setting, by whose value alone runs are grouped."
        ),
    ] = "method",
) -> None:
    """Write one HTML file about one or many runs, to be opened anywhere without a network.

    Curves with bands over seeds, the trust region, mismatch and drift, time, the settings that differ, the environment.

    Example: `drpo-verl report outputs/drpo-* outputs/grpo-* --out report.html`
    """
    from drpo_verl.report import write_report

    try:
        write_report(runs, out, group_by=group_by)
    except (OSError, ValueError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
    typer.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB, {len(runs)} run{'s' if len(runs) > 1 else ''})")


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
