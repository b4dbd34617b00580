"""Three real steps of every method on the CPU stack: ``make methods``.

Each is a run of its own (verl + Ray + vLLM + FSDP2) of the demo's policy, with bf16 in vLLM for a mismatch to measure,
and ends up in outputs/methods/<method>. Prints, and writes to outputs/methods/methods.md, what the last step logged.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from drpo_verl.configuration import search_path
from drpo_verl.metrics import names
from drpo_verl.run_folder.steps import METRICS_FILE, Step, read_steps

FOLDER = Path("outputs/methods")
STEPS = 3
COLUMNS = {
    "reward": (names.REWARD, "{:.3f}"),
    "abs(π − μ)": (names.ABS_PROB_DIFF_MEAN, "{:.1e}"),
    "max": (names.ABS_PROB_DIFF_MAX, "{:.2f}"),
    "mean w": (names.WEIGHT_MEAN, "{:.4f}"),
    "min w": (names.WEIGHT_MIN, "{:.2f}"),
    "outside": (names.OUTSIDE, "{:.2%}"),
    "s / step": (names.STEP_SECONDS, "{:.1f}"),
    "s / update": ("timing_s/update_actor", "{:.2f}"),
}


def run(method: str) -> list[Step]:
    """Run one method; its steps.

    Raises:
        subprocess.CalledProcessError: when the run fails; its logs are in its folder.
    """
    folder = FOLDER / method
    command = [
        sys.executable, "-m", "drpo_verl.train", "experiment=cpu_tiny", f"method={method}", f"run.dir={folder}",
        f"trainer.experiment_name={method}", f"trainer.total_training_steps={STEPS}", "trainer.val_before_train=false",
        "trainer.test_freq=-1", "trainer.save_freq=-1", "precision=cpu_bf16_rollout",
    ]  # fmt: skip
    subprocess.run(command, check=True)
    return [step for step in read_steps(folder / METRICS_FILE) if step.step > 0]


def main() -> None:
    """Run them all, or those named."""
    methods = search_path.methods()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"of {', '.join(methods)}; all by default")
    chosen = parser.parse_args().methods or methods
    if unknown := sorted(set(chosen) - set(methods)):
        parser.error(f"no such method: {', '.join(unknown)}")

    rows, start = [], time.monotonic()
    for number, method in enumerate(chosen, 1):
        print(f"[{number}/{len(chosen)}] {method}", flush=True)
        steps = run(method)
        assert [step.step for step in steps] == list(range(1, STEPS + 1)), f"{method}: {len(steps)} steps"
        rows.append([method, *(form.format(steps[-1].metrics[name]) for name, form in COLUMNS.values())])

    header = ["method", *COLUMNS]
    table = Table(title=f"step {STEPS} of every method; {time.monotonic() - start:.0f} s in all")
    for column in header:
        table.add_column(column, justify="left" if column == "method" else "right")
    for row in rows:
        table.add_row(*row)
    Console(width=140).print(table)
    lines = [header, ["---"] * len(header), *rows]
    (FOLDER / "methods.md").write_text("".join(f"| {' | '.join(line)} |\n" for line in lines))


if __name__ == "__main__":
    main()
