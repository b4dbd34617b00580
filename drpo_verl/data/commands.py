"""The commands ``drpo-verl data NAME``; each imports what it needs when it is called."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from drpo_verl.errors import UserError, exit_on_error

app = typer.Typer(
    help="Write data for verl: parquet files and a manifest. `drpo-verl data NAME --help` has each one's options.\n\n"
    "Example: `drpo-verl data arithmetic --help`",
    no_args_is_help=True,
    rich_markup_mode="markdown",
)

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


_SOURCES = {
    "dapo_math": ("DAPO-Math filtered to about 13,000 problems, on which both papers train.", ""),
    "dapo_math_17k": (
        "DAPO-Math-17k without its duplicates: 17,917 problems, on which a replication of DRPO trained.",
        " --from dapo-math-17k.parquet",
    ),
    "aime": ("AIME 2024 and 2025, 30 problems each, on which both papers evaluate.", ""),
    "sanity_r1d": ("The sanity test's 1,460 problems of MATH, for DeepSeek-R1-Distill-Qwen-1.5B.", ""),
}
"""What each data set of the hub is, and the options of its example."""


def _write(name: str, out: Path | None, write: Callable[[Path], dict[str, Any]]) -> None:
    from drpo_verl.data.write import default_folder

    folder = out or default_folder(name)
    with exit_on_error(UserError):
        manifest = write(folder)
    for part in manifest.get("parts", ()):
        dropped = "".join(f", {part[reason]:,} {reason}" for reason in ("unusable", "duplicates") if part[reason])
        typer.echo(f"{part['data_source']}: {part['read']:,} rows read{dropped}; {part['written']:,} problems")
        if part["contradicting"]:
            typer.echo(f"  {part['contradicting']:,} of the duplicates have another answer; the first was kept")
        if part["instructed"]:
            typer.echo(f"  {part['instructed']:,} prompts got an instruction to box the answer")
    for file, output in manifest["outputs"].items():
        typer.echo(f"{folder / file} ({output['rows']:,} rows)")
    typer.echo(folder / "manifest.json")


def _add_source(name: str, text: str, options: str) -> None:
    @app.command(name, help=f"{text}\n\nExample: `drpo-verl data {name}{options}`")
    def command(copy: _Copy = None, out: _Out = None, accept_changes: _Accept = False) -> None:
        from rich.console import Console

        from drpo_verl.data.write import from_source

        console = Console(stderr=True)
        _write(name, out, partial(from_source, name, copy, accept_changes=accept_changes, console=console))


for _name, (_text, _options) in _SOURCES.items():
    _add_source(_name, _text, _options)


@app.command("arithmetic")
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

    _write("arithmetic", out, partial(generated.arithmetic, train=train, test=test, seed=seed, style=style))


@app.command("reasoning_gym")
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

    write = partial(generated.reasoning_gym, task=task, train=train, test=test, seed=seed, console=Console(stderr=True))
    _write("reasoning_gym", out, write)
