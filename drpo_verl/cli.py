"""The command ``drpo-verl`` with the tools beside training; each of them imports what it needs when it is called."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from drpo_verl.data.commands import app as data_app
from drpo_verl.errors import UserError, exit_on_error
from drpo_verl.evaluation.settings import Settings as Evaluation
from drpo_verl.probe.settings import Settings as Probe

app = typer.Typer(
    name="drpo-verl",
    help="Trust regions for LLM reinforcement learning on verl: check runs before they start, measure and report them. "
    "Training itself is `python -m drpo_verl.train`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)
app.add_typer(data_app, name="data")


@app.command()
def dashboard(
    project: Annotated[str, typer.Option(help="The wandb project of the runs.")] = "drpo-verl",
    entity: Annotated[str, typer.Option(help="The user or team that owns the project. Default: you.")] = "",
    name: Annotated[str, typer.Option(help="What to call the workspace.")] = "Trust regions",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the workspace as JSON, without a server.")] = False,
) -> None:
    """Create a saved wandb workspace: reward, trust region, mismatch, drift, throughput; the runs grouped by method.

    Example: `drpo-verl dashboard --entity my-team --project drpo-verl`
    """
    from drpo_verl import dashboard as dashboards

    with exit_on_error(dashboards.DashboardError):
        workspace = dashboards.build(project=project, name=name, entity=entity)
        if dry_run:
            typer.echo(dashboards.as_json(workspace))
        else:
            dashboards.save(workspace)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders (`run.dir`) or metrics files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The HTML file to write.")] = Path("report.html"),
    group_by: Annotated[
        str,
        typer.Option(
            help="What makes one line, with a band over its runs. `method`: runs that differ in nothing but seeds. "
            "The full name of a setting: runs with the same value of it."
        ),
    ] = "method",
) -> None:
    """Write one HTML file about one or many runs, to be opened anywhere without a network.

    Curves with bands over seeds, the trust region, mismatch and drift, time, the settings that differ, the environment.
    Of several paths, those without a step of a run are left out with a warning.

    Example: `drpo-verl report outputs/drpo-* outputs/grpo-* --out report.html`
    """
    from drpo_verl.report import write_report

    with exit_on_error(OSError, ValueError):
        count = write_report(
            runs, out, group_by=group_by,
            left_out=lambda reason: typer.secho(f"warning: left out: {reason}", fg="yellow", err=True),
        )  # fmt: skip
    typer.echo(f"{out} ({out.stat().st_size / 1e6:.1f} MB, {count} run{'s' if count > 1 else ''})")


@app.command(no_args_is_help=True)
def check(
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="OVERRIDE", help="Settings as name=value, as for `python -m drpo_verl.train`."),
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

    from drpo_verl.preflight.command import check_command

    result = check_command(overrides or [])
    if as_json:
        typer.echo(result.as_json())
    else:
        result.show(Console())
    raise typer.Exit(0 if result.ok else 1)


_rollout_option = partial(typer.Option, rich_help_panel="Rollout engine")
_MODEL = typer.Argument(
    metavar="MODEL",
    help="A Hugging Face folder or name, a run or checkpoint of verl, or `tiny`, `tiny_moe`, `tiny_long_tail` "
    "or `smollm2`.",
)
_MEMORY = "Share of each card's memory that vLLM may take; without it, vLLM's own default, nearly all."


@app.command()
def probe(
    model: Annotated[str, _MODEL],
    prompts: Annotated[
        Path | None,
        typer.Option(help="A verl parquet, or a text file with a prompt a line; without it, arithmetic problems."),
    ] = Probe.prompts,
    count: Annotated[int, typer.Option(help="How many prompts, from the beginning of the file.")] = Probe.count,
    samples: Annotated[int, typer.Option(help="Responses to each prompt.")] = Probe.samples,
    max_tokens: Annotated[int, typer.Option(help="The longest response, in tokens.")] = Probe.max_tokens,
    dtype: Annotated[str, _rollout_option(help="vLLM's precision: bfloat16, float16 or float32.")] = Probe.dtype,
    kv_cache_dtype: Annotated[
        str, _rollout_option(help="Precision of vLLM's KV cache, e.g. fp8_e4m3.")
    ] = Probe.kv_cache_dtype,
    quantization: Annotated[str | None, _rollout_option(help="vLLM's quantisation, e.g. fp8.")] = Probe.quantization,
    weights: Annotated[
        str | None,
        _rollout_option(help="On a CPU: a format that vLLM's weights go through and back: int8, int4, int3 or fp8."),
    ] = Probe.weights,
    tensor_parallel_size: Annotated[
        int, _rollout_option(help="Cards that vLLM splits the model over.")
    ] = Probe.tensor_parallel_size,
    gpu_memory_utilization: Annotated[float | None, _rollout_option(help=_MEMORY)] = Probe.gpu_memory_utilization,
    temperature: Annotated[
        float, _rollout_option(help="Sampling temperature; both engines divide the logits by it.")
    ] = Probe.temperature,
    top_p: Annotated[
        float, _rollout_option(help="Sampling top-p; below 1, μ is the truncated distribution.")
    ] = Probe.top_p,
    top_k: Annotated[int, _rollout_option(help="Sampling top-k; -1 truncates nothing.")] = Probe.top_k,
    seed: Annotated[int, _rollout_option(help="Seed of the sampling.")] = Probe.seed,
    train_dtype: Annotated[
        str,
        typer.Option(
            help="The trainer's precision, over fp32 parameters: bfloat16, float16 or float32.",
            rich_help_panel="Training engine",
        ),
    ] = Probe.train_dtype,
    head_dtype: Annotated[
        str | None, typer.Option(help="float32: the LM head in fp32, in both engines.")
    ] = Probe.head_dtype,
    share: Annotated[
        float, typer.Option(help="Share of the diverging tokens that may lie outside the suggested δ.")
    ] = Probe.share,
    out: Annotated[Path, typer.Option(help="Folder for probe.json, probe.png and probe.txt.")] = Path("outputs/probe"),
) -> None:
    """Measure how far vLLM and the trainer are apart, before training.

    vLLM samples in one precision, the trainer's forward scores the same tokens in another, with the same weights.
    Reports the mismatch by the probability of the token, what each method would make of it at its defaults, and a δ.

    Example: `drpo-verl probe smollm2 --train-dtype float32 --kv-cache-dtype fp8_e4m3 --max-tokens 24`
    """
    from rich.console import Console

    from drpo_verl.probe.run import PICTURE_FILE, RESULT_FILE, run

    with exit_on_error(UserError):
        settings = Probe(
            model=model, prompts=prompts, count=count, samples=samples, max_tokens=max_tokens, dtype=dtype,
            kv_cache_dtype=kv_cache_dtype, quantization=quantization, weights=weights,
            tensor_parallel_size=tensor_parallel_size, gpu_memory_utilization=gpu_memory_utilization,
            temperature=temperature, top_p=top_p, top_k=top_k, seed=seed, train_dtype=train_dtype,
            head_dtype=head_dtype, share=share,
        )  # fmt: skip
        run(settings, out, Console())
    typer.echo(f"\n{out / RESULT_FILE}\n{out / PICTURE_FILE}")


@app.command("eval")
def evaluate(
    model: Annotated[str, _MODEL],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A verl parquet, as `drpo-verl data` writes them.")],
    k: Annotated[int, typer.Option(help="Samples of each problem.")] = Evaluation.k,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0 for greedy decoding.")
    ] = Evaluation.temperature,
    top_p: Annotated[float, typer.Option(help="Sampling top-p.")] = Evaluation.top_p,
    max_tokens: Annotated[int, typer.Option(help="The longest response, in tokens.")] = Evaluation.max_tokens,
    tensor_parallel_size: Annotated[
        int, typer.Option(help="Cards that vLLM splits the model over.")
    ] = Evaluation.tensor_parallel_size,
    gpu_memory_utilization: Annotated[float | None, typer.Option(help=_MEMORY)] = Evaluation.gpu_memory_utilization,
    dtype: Annotated[str, typer.Option(help="vLLM's precision.")] = Evaluation.dtype,
    seed: Annotated[int, typer.Option(help="Seed of the sampling and of the intervals.")] = Evaluation.seed,
    out: Annotated[Path, typer.Option(help="Folder for eval.json, eval.txt and samples.jsonl.")] = Path("outputs/eval"),
) -> None:
    """Measure avg@k and pass@k on a parquet with vLLM, with intervals over the problems, by data source.

    Example: `drpo-verl eval outputs/demo outputs/demo/data/val.parquet --max-tokens 6`
    """
    from rich.console import Console

    from drpo_verl.evaluation.run import RESULT_FILE, SAMPLES_FILE, run

    with exit_on_error(UserError):
        settings = Evaluation(
            model=model, data=data, k=k, temperature=temperature, top_p=top_p, max_tokens=max_tokens,
            tensor_parallel_size=tensor_parallel_size, gpu_memory_utilization=gpu_memory_utilization, dtype=dtype,
            seed=seed,
        )  # fmt: skip
        run(settings, out, Console())
    typer.echo(f"\n{out / RESULT_FILE}\n{out / SAMPLES_FILE}")


@app.command()
def study(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A study, as those in `studies/`.")],
    parallel: Annotated[int, typer.Option(help="How many runs at a time; on GPUs each gets its own cards.")] = 1,
    only: Annotated[str, typer.Option(help="Make only the runs with this in their names.")] = "",
    retry_failed: Annotated[bool, typer.Option("--retry-failed", help="Make failed runs again.")] = False,
    collect: Annotated[bool, typer.Option("--collect", help="Make no run, only the tables.")] = False,
    runs: Annotated[Path, typer.Option(help="The folder of all studies' runs.")] = Path("outputs/study"),
    out: Annotated[Path | None, typer.Option(help="Folder of the tables. Default: that of the study's runs.")] = None,
) -> None:
    """Make the runs of a study: a grid of methods, settings and seeds, each an ordinary run of `drpo_verl.train`.

    A run that has ended is not made again, an interrupted one is started anew, and a failed one is a result like any
    other. Writes a Parquet file of the runs, and one of their steps, after each run.

    Example: `drpo-verl study studies/smoke.yaml`
    """
    from rich.console import Console

    from drpo_verl.study.command import study as make
    from drpo_verl.study.plan import read_plan

    with exit_on_error(UserError):
        make(
            file, runs_folder=runs, out=out or runs / read_plan(file).name, parallel=parallel, only=only,
            retry_failed=retry_failed, collect_only=collect, console=Console(),
        )  # fmt: skip


def main() -> None:
    """Run the command; the entry point of the package."""
    app()


if __name__ == "__main__":
    main()
