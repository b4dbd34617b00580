"""``drpo-verl``: the tools beside training. Each command imports what it needs when it is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from drpo_verl.probe.settings import ProbeError, Settings

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


@app.command()
def check(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="OVERRIDE", help="As for `python -m drpo_verl.train`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")] = False,
) -> None:
    """Verify a run's configuration in seconds, without a GPU and without starting anything.

    Batch arithmetic, parallel sizes, the method and its anchor, lengths, precision, files, the memory of a card; then
    what it comes to: tokens and optimiser steps per rollout, expected staleness. Exit code 1 if it would not run as
    meant.

    Example: `drpo-verl check experiment=cpu_tiny method=dppo_binary_tv data.train_batch_size=30`
    """
    from rich.console import Console

    from drpo_verl.check.command import check_run

    result = check_run(overrides or [])
    if as_json:
        typer.echo(result.as_json())
    else:
        result.show(Console())
    raise typer.Exit(0 if result.ok else 1)


@app.command()
def probe(
    model: Annotated[str, typer.Argument(help="A Hugging Face folder or name, or `tiny`, `smollm2`.")],
    prompts: Annotated[
        Path | None,
        typer.Option(help="A verl parquet, or a text file with a prompt a line; without it, arithmetic problems."),
    ] = Settings.prompts,
    count: Annotated[int, typer.Option(help="Prompts, from the beginning of the file.")] = Settings.count,
    samples: Annotated[int, typer.Option(help="Responses to each.")] = Settings.samples,
    max_tokens: Annotated[int, typer.Option(help="The longest response.")] = Settings.max_tokens,
    dtype: Annotated[
        str, typer.Option(help="vLLM's precision: bfloat16, float16 or float32.", rich_help_panel="Rollout engine")
    ] = Settings.dtype,
    kv_cache_dtype: Annotated[
        str, typer.Option(help="Of vLLM's KV cache, e.g. fp8_e4m3.", rich_help_panel="Rollout engine")
    ] = Settings.kv_cache_dtype,
    quantization: Annotated[
        str | None, typer.Option(help="vLLM's quantisation, e.g. fp8.", rich_help_panel="Rollout engine")
    ] = Settings.quantization,
    tensor_parallel_size: Annotated[
        int, typer.Option(help="Of vLLM.", rich_help_panel="Rollout engine")
    ] = Settings.tensor_parallel_size,
    temperature: Annotated[
        float, typer.Option(help="Of the sampling; both engines divide by it.", rich_help_panel="Rollout engine")
    ] = Settings.temperature,
    top_p: Annotated[
        float, typer.Option(help="Below 1, μ is the truncated distribution.", rich_help_panel="Rollout engine")
    ] = Settings.top_p,
    top_k: Annotated[
        int, typer.Option(help="Likewise; -1 truncates nothing.", rich_help_panel="Rollout engine")
    ] = Settings.top_k,
    seed: Annotated[int, typer.Option(help="Of the sampling.", rich_help_panel="Rollout engine")] = Settings.seed,
    train_dtype: Annotated[
        str,
        typer.Option(
            help="In which the trainer computes, over fp32 parameters: bfloat16, float16 or float32.",
            rich_help_panel="Training engine",
        ),
    ] = Settings.train_dtype,
    share: Annotated[
        float, typer.Option(help="Of the diverging tokens, to be outside the suggested δ.")
    ] = Settings.share,
    out: Annotated[Path, typer.Option(help="Folder of probe.json, probe.png and probe.txt.")] = Path("outputs/probe"),
) -> None:
    """Measure how far vLLM and the trainer are apart, before training.

    vLLM samples in one precision, the trainer's forward scores the same tokens in another, with the same weights.
    Reports the mismatch by the probability of the token, what each method would make of it at its defaults, and a δ.

    Example: `drpo-verl probe smollm2 --train-dtype float32 --kv-cache-dtype fp8_e4m3 --max-tokens 24`
    """
    from rich.console import Console

    from drpo_verl.probe.run import PICTURE_FILE, RESULT_FILE, run

    try:
        settings = Settings(
            model=model, prompts=prompts, count=count, samples=samples, max_tokens=max_tokens, dtype=dtype,
            kv_cache_dtype=kv_cache_dtype, quantization=quantization, tensor_parallel_size=tensor_parallel_size,
            temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, train_dtype=train_dtype, share=share,
        )  # fmt: skip
        run(settings, out, Console())
    except ProbeError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    typer.echo(f"\n{out / RESULT_FILE}\n{out / PICTURE_FILE}")


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
