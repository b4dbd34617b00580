"""What Top-K costs in a step of the demo, against the binary divergence: ``python -m benchmarks.top_k``.

Runs ``dppo_topk_tv`` and ``dppo_binary_tv`` in turn, each a whole run of its own, and compares the median step times of
each pair: a machine's speed drifts, so only the ratio counts.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path

from drpo_verl.run_folder.steps import METRICS_FILE, read_steps

FOLDER = Path("outputs/bench_top_k")
PARTS = ("timing_s/step", "timing_s/gen", "timing_s/update_actor")


def medians(method: str, steps: int, number: int) -> dict[str, float]:
    """The median seconds of a step and of its parts, the first step (which warms up) left out."""
    folder = FOLDER / f"{method}_{number}"
    command = [
        sys.executable, "-m", "drpo_verl.train", "experiment=cpu_tiny", f"method={method}", f"run.dir={folder}",
        f"trainer.experiment_name={folder.name}", f"trainer.total_training_steps={steps}",
        "trainer.val_before_train=false", "trainer.test_freq=-1", "trainer.save_freq=-1", "precision=cpu_fp32",
    ]  # fmt: skip
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    logged = [step.metrics for step in read_steps(folder / METRICS_FILE) if step.step > 1]
    return {part: statistics.median(metrics[part] for metrics in logged) for part in PARTS}


def main() -> None:
    """Print each pair, and the median of the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16)
    arguments = parser.parse_args()
    ratios: dict[str, list[float]] = {part: [] for part in PARTS}
    for number in range(1, arguments.pairs + 1):
        binary = medians("dppo_binary_tv", arguments.steps, number)
        top_k = medians("dppo_topk_tv", arguments.steps, number)
        for part in PARTS:
            ratios[part].append(top_k[part] / binary[part])
            print(
                f"pair {number}  {part:22} {top_k[part]:.2f} / {binary[part]:.2f} s = {ratios[part][-1]:.2f}",
                flush=True,
            )
    for part in PARTS:
        print(f"median  {part:22} {statistics.median(ratios[part]):.2f}")


if __name__ == "__main__":
    main()
