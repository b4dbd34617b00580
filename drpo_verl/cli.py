"""``drpo-verl``: the tools beside training. Each command imports what it needs when it is called."""

from __future__ import annotations

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


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
