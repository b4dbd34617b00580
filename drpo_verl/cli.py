"""``drpo-verl``: the tools beside training. Each command imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from drpo_verl.errors import UserError
from drpo_verl.evaluation.settings import Settings as EvaluationSettings
from drpo_verl.probe.settings import Settings

app = typer.Typer(
    name="drpo-verl",
    help="Trust regions for LLM reinforcement learning on verl: check runs before they start, measure and report them. "
    "Training itself is `python -m drpo_verl.train`.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_show_locals=False,
)


data_app = typer.Typer(
    help="Write data for verl: parquet files and a manifest. `drpo-verl data NAME --help` has each one's options.\n\n"
    "Example: `drpo-verl data arithmetic --help`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)
app.add_typer(data_app, name="data")


@app.callback()
def _root() -> None:
    """Makes every function below a subcommand, however few there are."""


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

    try:
        count = write_report(
            runs, out, group_by=group_by,
            left_out=lambda reason: typer.secho(f"warning: left out: {reason}", fg="yellow", err=True),
        )  # fmt: skip
    except (OSError, ValueError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(1) from error
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

    from drpo_verl.preflight.command import check_run

    result = check_run(overrides or [])
    if as_json:
        typer.echo(result.as_json())
    else:
        result.show(Console())
    raise typer.Exit(0 if result.ok else 1)


@app.command()
def probe(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A Hugging Face folder or name, a run or checkpoint of verl, or `tiny`, `smollm2`."
        ),
    ],
    prompts: Annotated[
        Path | None,
        typer.Option(help="A verl parquet, or a text file with a prompt a line; without it, arithmetic problems."),
    ] = Settings.prompts,
    count: Annotated[int, typer.Option(help="How many prompts, from the beginning of the file.")] = Settings.count,
    samples: Annotated[int, typer.Option(help="Responses to each prompt.")] = Settings.samples,
    max_tokens: Annotated[int, typer.Option(help="The longest response, in tokens.")] = Settings.max_tokens,
    dtype: Annotated[
        str, typer.Option(help="vLLM's precision: bfloat16, float16 or float32.", rich_help_panel="Rollout engine")
    ] = Settings.dtype,
    kv_cache_dtype: Annotated[
        str, typer.Option(help="Precision of vLLM's KV cache, e.g. fp8_e4m3.", rich_help_panel="Rollout engine")
    ] = Settings.kv_cache_dtype,
    quantization: Annotated[
        str | None, typer.Option(help="vLLM's quantisation, e.g. fp8.", rich_help_panel="Rollout engine")
    ] = Settings.quantization,
    tensor_parallel_size: Annotated[
        int, typer.Option(help="Cards that vLLM splits the model over.", rich_help_panel="Rollout engine")
    ] = Settings.tensor_parallel_size,
    temperature: Annotated[
        float,
        typer.Option(
            help="Sampling temperature; both engines divide the logits by it.", rich_help_panel="Rollout engine"
        ),
    ] = Settings.temperature,
    top_p: Annotated[
        float,
        typer.Option(
            help="Sampling top-p; below 1, μ is the truncated distribution.", rich_help_panel="Rollout engine"
        ),
    ] = Settings.top_p,
    top_k: Annotated[
        int, typer.Option(help="Sampling top-k; -1 truncates nothing.", rich_help_panel="Rollout engine")
    ] = Settings.top_k,
    seed: Annotated[int, typer.Option(help="Seed of the sampling.", rich_help_panel="Rollout engine")] = Settings.seed,
    train_dtype: Annotated[
        str,
        typer.Option(
            help="The trainer's precision, over fp32 parameters: bfloat16, float16 or float32.",
            rich_help_panel="Training engine",
        ),
    ] = Settings.train_dtype,
    share: Annotated[
        float, typer.Option(help="Share of the diverging tokens that may lie outside the suggested δ.")
    ] = Settings.share,
    out: Annotated[Path, typer.Option(help="Folder for probe.json, probe.png and probe.txt.")] = Path("outputs/probe"),
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
    except UserError as error:
        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    typer.echo(f"\n{out / RESULT_FILE}\n{out / PICTURE_FILE}")


_Copy = Annotated[
    Path | None,
    typer.Option("--from", help="Read a local copy of the hub's repository, or one file of it, instead."),
]
_Out = Annotated[
    Path | None,
    typer.Option(help="Folder to write. Default: `$DRPO_VERL_DATA/NAME`, else `~/.cache/drpo-verl/data/NAME`."),
]
_Accept = Annotated[
    bool,
    typer.Option(
        "--accept-changes", help="Accept files or numbers of problems other than the known ones, and record them."
    ),
]
_Train = Annotated[int, typer.Option(help="How many problems to train on.")]
_Test = Annotated[int, typer.Option(help="How many to test on; none of them is among those to train on.")]
_Seed = Annotated[int, typer.Option(help="Seed of the problems.")]


def _from_source(name: str, copy: Path | None, out: Path | None, accept_changes: bool) -> None:
    from rich.console import Console

    from drpo_verl.data.write import default_folder, from_source

    folder = out or default_folder(name)
    with _told():
        _written(folder, from_source(name, copy, folder, accept_changes=accept_changes, console=Console(stderr=True)))


def _written(folder: Path, manifest: dict[str, Any]) -> None:
    for part in manifest.get("parts", ()):
        dropped = {each: part[each] for each in ("unusable", "duplicates") if part[each]}
        said = "".join(f", {count:,} {what}" for what, count in dropped.items())
        typer.echo(f"{part['data_source']}: {part['read']:,} rows read{said}; {part['written']:,} problems")
        if part["contradicting"]:
            typer.echo(f"  {part['contradicting']:,} of the duplicates have another answer; the first was kept")
        if part["instructed"]:
            typer.echo(f"  {part['instructed']:,} prompts got an instruction to box the answer")
    for name, output in manifest["outputs"].items():
        typer.echo(f"{folder / name} ({output['rows']:,} rows)")
    typer.echo(folder / "manifest.json")


@contextmanager
def _told() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        from rich.console import Console

        Console(stderr=True).print(f"error: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error


@data_app.command("dapo_math")
def dapo_math(copy: _Copy = None, out: _Out = None, accept_changes: _Accept = False) -> None:
    """DAPO-Math filtered to about 13,000 problems, on which both papers train.

    Example: `drpo-verl data dapo_math`
    """
    _from_source("dapo_math", copy, out, accept_changes)


@data_app.command("dapo_math_17k")
def dapo_math_17k(copy: _Copy = None, out: _Out = None, accept_changes: _Accept = False) -> None:
    """DAPO-Math-17k without its duplicates: 17,917 problems, on which a replication of DRPO trained.

    Example: `drpo-verl data dapo_math_17k --from dapo-math-17k.parquet`
    """
    _from_source("dapo_math_17k", copy, out, accept_changes)


@data_app.command("aime")
def aime(copy: _Copy = None, out: _Out = None, accept_changes: _Accept = False) -> None:
    """AIME 2024 and 2025, 30 problems each, on which both papers evaluate.

    Example: `drpo-verl data aime`
    """
    _from_source("aime", copy, out, accept_changes)


@data_app.command("sanity_r1d")
def sanity_r1d(copy: _Copy = None, out: _Out = None, accept_changes: _Accept = False) -> None:
    """The sanity test's 1,460 problems of MATH, for DeepSeek-R1-Distill-Qwen-1.5B.

    Example: `drpo-verl data sanity_r1d`
    """
    _from_source("sanity_r1d", copy, out, accept_changes)


@data_app.command("arithmetic")
def arithmetic(
    train: _Train = 2048,
    test: _Test = 256,
    seed: _Seed = 1,
    style: Annotated[
        str, typer.Option(help="How a problem is put: `terse` for the tiny policy, `natural` for others.")
    ] = "terse",
    out: _Out = None,
) -> None:
    """Two-digit arithmetic, the task of the CPU experiments. Needs no network.

    Example: `drpo-verl data arithmetic --test 64`
    """
    from drpo_verl.data import generated
    from drpo_verl.data.write import default_folder

    folder = out or default_folder("arithmetic")
    with _told():
        _written(folder, generated.arithmetic(folder, train=train, test=test, seed=seed, style=style))


@data_app.command("reasoning_gym")
def reasoning_gym(
    task: Annotated[
        str, typer.Option(help="A task of reasoning-gym whose scorer does not run answers as code.")
    ] = "chain_sum",
    train: _Train = 2048,
    test: _Test = 256,
    seed: _Seed = 1,
    out: _Out = None,
) -> None:
    """Problems of one of reasoning-gym's tasks, scored by its own scorer. Needs no network.

    Example: `drpo-verl data reasoning_gym --task chain_sum`
    """
    from rich.console import Console

    from drpo_verl.data import generated
    from drpo_verl.data.write import default_folder

    folder = out or default_folder("reasoning_gym")
    with _told():
        console = Console(stderr=True)
        _written(folder, generated.reasoning_gym(folder, task=task, train=train, test=test, seed=seed, console=console))


@app.command("eval")
def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A Hugging Face folder or name, a run or checkpoint of verl, or `tiny`, `smollm2`."
        ),
    ],
    data: Annotated[Path, typer.Argument(metavar="DATA", help="A verl parquet, as `drpo-verl data` writes them.")],
    k: Annotated[int, typer.Option(help="Samples of each problem.")] = EvaluationSettings.k,
    temperature: Annotated[
        float, typer.Option(help="Sampling temperature; 0 for greedy decoding.")
    ] = EvaluationSettings.temperature,
    top_p: Annotated[float, typer.Option(help="Sampling top-p.")] = EvaluationSettings.top_p,
    max_tokens: Annotated[int, typer.Option(help="The longest response, in tokens.")] = EvaluationSettings.max_tokens,
    tensor_parallel_size: Annotated[
        int, typer.Option(help="Cards that vLLM splits the model over.")
    ] = EvaluationSettings.tensor_parallel_size,
    dtype: Annotated[str, typer.Option(help="vLLM's precision.")] = EvaluationSettings.dtype,
    seed: Annotated[int, typer.Option(help="Seed of the sampling and of the intervals.")] = EvaluationSettings.seed,
    out: Annotated[Path, typer.Option(help="Folder for eval.json, eval.txt and samples.jsonl.")] = Path("outputs/eval"),
) -> None:
    """Measure avg@k and pass@k on a parquet with vLLM, with intervals over the problems, by data source.

    Example: `drpo-verl eval outputs/demo outputs/demo/data/val.parquet --max-tokens 6`
    """
    from rich.console import Console

    from drpo_verl.evaluation.run import RESULT_FILE, SAMPLES_FILE, run

    with _told():
        settings = EvaluationSettings(
            model=model, data=data, k=k, temperature=temperature, top_p=top_p, max_tokens=max_tokens,
            tensor_parallel_size=tensor_parallel_size, dtype=dtype, seed=seed,
        )  # fmt: skip
        run(settings, out, Console())
    typer.echo(f"\n{out / RESULT_FILE}\n{out / SAMPLES_FILE}")


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
