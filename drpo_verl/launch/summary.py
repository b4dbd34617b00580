"""What is made of a run's metrics when it has ended: its picture, its summary, and the last lines on the terminal."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from drpo_verl.configuration.method import method_of
from drpo_verl.configuration.precision import rollout_numbers, trainer_numbers
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.seeds import SETTING
from drpo_verl.launch.console import describe_distance
from drpo_verl.run_folder.parts import read_run
from drpo_verl.run_folder.picture import draw
from drpo_verl.run_folder.steps import METRICS_FILE, PICTURE_FILE, SUMMARY_FILE, held_out_interval

LOG_FILE = "train.log"


def summarise(config: DictConfig, folder: Path, console: Console) -> None:
    """Draw the run's picture, write its summary, and say how accurate the policy was and where everything is.

    Args:
        config: of the run.
        folder: with its metrics, from its beginning where it was resumed; gets the picture and the summary.
        console: where it is said.
    """

    def warn(problem: str) -> None:
        console.print(f"warning: left out: {problem}", style="yellow", markup=False, highlight=False, soft_wrap=True)

    steps = read_run(folder, warn).steps
    if not steps:  # which require_all_steps refuses
        return
    method, delta = method_of(config), config.actor_rollout_ref.actor.policy_loss.get("delta")
    title = f"{config.trainer.experiment_name}: {method}" + (f", delta {delta}" if delta else "")
    run = RunConfig(config)
    title += f"\nrollout engine in {rollout_numbers(run)}; trainer in {trainer_numbers(run)}"
    problems = held_out_problems(config)
    draw(steps, folder / PICTURE_FILE, title=title, problems=problems)

    validation: list[dict[str, Any]] = [
        {"step": step.step, "data_source": source, "accuracy": accuracy, "problems": problems.get(source),
         "interval_95": held_out_interval(accuracy, problems.get(source))}
        for step in steps for source, accuracy in step.validation.items()
    ]  # fmt: skip
    summary = {
        "method": method,
        "seed": OmegaConf.select(config, SETTING),
        "steps": steps[-1].step,
        "validation": validation,
    }
    (folder / SUMMARY_FILE).write_text(json.dumps(summary, indent=2) + "\n")

    console.print()
    several = len({entry["data_source"] for entry in validation}) > 1
    for entry in validation:
        interval, count = entry["interval_95"], entry["problems"]
        between = f"  (95 % interval {interval[0]:.3f} to {interval[1]:.3f}, {count} problems)" if interval else ""
        on = f" on {entry['data_source']}" if several else ""
        console.print(
            f"held-out accuracy{on} after step {entry['step']:>3}: {entry['accuracy']:.3f}{between}",
            highlight=False, soft_wrap=True,
        )  # fmt: skip
    if distance := describe_distance(steps):
        console.print(distance, highlight=False, soft_wrap=True)
    places = {
        "metrics": METRICS_FILE,
        "picture": PICTURE_FILE,
        "checkpoint": f"checkpoints/global_step_{steps[-1].step}",
        "logs": LOG_FILE,
    }
    if "wandb" in config.trainer.logger:
        places["wandb"] = "wandb/latest-run"
    for name, place in places.items():
        if (folder / place).exists():
            console.print(f"{name:>10}: {display_path(folder / place)}", highlight=False, soft_wrap=True)


def display_path(path: Path) -> str:
    """The path as seen from the current folder, where it is below that and that is there."""
    try:
        here = Path.cwd()
    except FileNotFoundError:  # of a submitted job: Ray may have removed it by the end
        return str(path)
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def held_out_problems(config: DictConfig) -> dict[str, int]:
    """How many problems each data source has, rows of the same prompt being one; empty where that is not known."""
    import pyarrow.parquet as pq

    files = config.data.val_files
    files = [files] if isinstance(files, str) else list(files)
    columns = [config.data.get("reward_fn_key", "data_source"), config.data.get("prompt_key", "prompt")]
    if config.data.get("val_max_samples", -1) > 0 or not all(
        os.path.exists(file) and set(columns) <= set(pq.read_schema(file).names) for file in files
    ):
        return {}
    rows = (row for file in files for row in pq.read_table(file, columns=columns).to_pylist())
    return Counter(source for source, _ in {(str(row[columns[0]]), repr(row[columns[1]])) for row in rows})
