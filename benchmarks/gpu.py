"""The losses, and what they take of a training step, on one GPU: ``python -m benchmarks.gpu`` (``make bench-gpu``).

Two tables. The losses against verl's own, forward and backward, in pairs; and two updates of a Qwen3 of 0.6 billion
parameters (random weights) with verl's own DPPO against the same with ours, in turns: with the trust region's metrics,
with all diagnostics, over Top-K (K = 20 of 151,936 tokens), and with the distance from a recomputed pi_old. Times are
CUDA events after a warm-up. With ``--device cpu`` everything is small and timed by the clock: it shows that the
benchmark runs, and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ.update({"VERL_PLATFORM": "cpu"} if "cpu" in sys.argv else {})  # before verl is imported

import torch
from omegaconf import open_dict
from rich.console import Console
from rich.table import Table
from verl.utils.device import get_device_name

from benchmarks.actor import SMALL, batch, be_the_only_rank, configuration, random_model, sample, worker
from benchmarks.policy_loss import COUNTERPARTS, step
from benchmarks.policy_loss import batch as loss_batch

DEVICE = "cpu" if "cpu" in sys.argv else "cuda"
PROMPT, RESPONSE, TOP_K = 256, 768, 20
LOSS = "actor_rollout_ref.actor.policy_loss"
VARIANTS = {
    "drpo": ["method=drpo", f"{LOSS}.diagnostics=false"],
    "drpo + diagnostics": ["method=drpo"],
    "dppo_topk_tv": ["method=dppo_topk_tv", f"{LOSS}.top_k={TOP_K}"],
    "drpo_decoupled": ["method=drpo_decoupled"],
}


def milliseconds(run: Callable[[], Any]) -> float:
    """The time of one call, on the device's own clock where it has one."""
    if DEVICE == "cpu":
        start = time.perf_counter()
        run()
        return 1e3 * (time.perf_counter() - start)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def peak_gib(run: Callable[[], Any]) -> float:
    """The most memory that torch has held during a call; not a number on a CPU."""
    if DEVICE == "cpu":
        run()
        return float("nan")
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 1024**3


def pairs(run: Callable[[], Any], reference: Callable[[], Any], count: int, limit: float = 60.0) -> dict[str, float]:
    """Medians of both and of their paired ratios, in turn, after a warm-up; and the peak memory of each.

    Args:
        run: what is measured.
        reference: what it is compared with.
        count: how many pairs.
        limit: seconds after which no further pair is started; one is always measured.
    """
    for _ in range(2 if DEVICE == "cuda" else 0):
        run(), reference()
    peak, peak_of_reference = peak_gib(run), peak_gib(reference)
    end, times = time.monotonic() + limit, list[tuple[float, float]]()
    while not times or (len(times) < count and time.monotonic() < end):
        times.append((milliseconds(run), milliseconds(reference)))
    return {
        "pairs": len(times),
        "ms": statistics.median(a for a, _ in times),
        "reference_ms": statistics.median(b for _, b in times),
        "ratio": statistics.median(a / b for a, b in times),
        "gib": peak,
        "reference_gib": peak_of_reference,
    }


def losses(sizes: list[tuple[int, int]], count: int) -> dict[str, dict[str, float]]:
    """Forward and backward of each loss against verl's."""
    figures = {}
    for rows, width in sizes:
        small = loss_batch()
        repeated = (-(-rows // len(small["log_prob"])), -(-width // small["log_prob"].shape[1]))
        data = {
            name: tensor.detach().repeat(repeated)[:rows, :width].contiguous().to(DEVICE)
            for name, tensor in small.items()
        }
        data["log_prob"].requires_grad_()
        for ours, counterpart in COUNTERPARTS.items():
            for diagnostics in (False, True):
                name = f"{ours}{' + diagnostics' * diagnostics} [{rows}, {width}]"
                figures[name] = pairs(step(ours, data, diagnostics), step(counterpart, data, diagnostics), count)
    return figures


def updates(count: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Two updates of the actor with our losses against the same with verl's own ``dppo_tv``, one loss after another."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.losses import ppo_loss

    from drpo_verl.adapters.top_k import encode

    overrides = ["actor_rollout_ref.rollout.n=1"]
    if DEVICE == "cpu":  # which may have no compiler
        actor = "actor_rollout_ref.actor"
        overrides += [f"{actor}.use_torch_compile=false", f"{actor}.fsdp_config.use_torch_compile=false"]
    config = configuration(*overrides, experiment="gpu_qwen3_0_6b")
    with tempfile.TemporaryDirectory() as folder:
        with open_dict(config):
            if DEVICE == "cpu":
                config.check.architecture.update(SMALL)
            config.actor_rollout_ref.model.path = folder
        random_model(config.check.architecture, Path(folder), DEVICE)
        be_the_only_rank()
        policy = worker(config).actor
        generator = torch.Generator().manual_seed(0)
        vocabulary, prompt, response = config.check.architecture.vocab_size, PROMPT, RESPONSE
        if DEVICE == "cpu":
            prompt, response = 8, 24
        rows = []
        for _ in range(32 if DEVICE == "cuda" else 4):
            tokens = torch.randint(0, vocabulary, (prompt + response,), generator=generator)
            log_mu = torch.full((response,), -torch.log(torch.tensor(float(vocabulary))).item())
            row = sample(tokens[:prompt], tokens[prompt:], log_mu, torch.randn(1, generator=generator))
            # The Top-K tokens of mu: any others beside the sampled one, as the weights are random.
            ids = torch.cat([tokens[prompt:, None], torch.arange(TOP_K).expand(response, TOP_K) + 1], dim=-1)
            others = log_mu[:, None].double().expand(response, TOP_K + 1)
            rows.append({**row, **encode(prompt, ids.numpy(), others.numpy())})

        def updating(*choice: str) -> Callable[[], Any]:
            section = configuration(*overrides, *choice, experiment="gpu_qwen3_0_6b").actor_rollout_ref.actor
            loss = partial(ppo_loss, config=omega_conf_to_dataclass(section))

            def run() -> None:
                policy.set_loss_fn(loss)
                policy.on_weight_sync()
                policy.train_mini_batch(batch(rows, samples_per_update=len(rows) // 2))

            return run

        verl_own = updating(
            "~method", f"{LOSS}._target_=verl.workers.config.PolicyLossConfig", f"{LOSS}.loss_mode=dppo_tv"
        )
        tokens_per_update = len(rows) * (prompt + response)
        for name, choice in VARIANTS.items():
            figures = pairs(updating(*choice), verl_own, count)
            yield name, {**figures, "tokens_per_second": 1e3 * tokens_per_update / figures["ms"]}
        torch.distributed.destroy_process_group()


def _machine() -> dict[str, str]:
    device = torch.cuda.get_device_name() if DEVICE == "cuda" else f"{platform.processor() or platform.machine()} (CPU)"
    return {"device": device, "torch": torch.__version__, "cuda": str(torch.version.cuda)}


def _show(title: str, figures: dict[str, dict[str, float]]) -> None:
    table = Table(title=title)
    columns = list(next(iter(figures.values())))
    for column in ("", *columns):
        table.add_column(column, justify="right")
    for name, row in figures.items():
        table.add_row(
            name, *(f"{row[column]:.3g}" if row[column] < 1e3 else f"{row[column]:.0f}" for column in columns)
        )
    Console(width=140).print(table)


def main() -> None:
    """Print the tables, and write them to a JSON file if one is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--out", type=Path, help="a JSON file with all figures")
    arguments = parser.parse_args()
    if DEVICE == "cuda" and not torch.cuda.is_available():
        sys.exit(f"error: torch.cuda.is_available() is false with torch {torch.__version__}: no GPU to measure on.")
    if get_device_name() != DEVICE:
        sys.exit(f"error: verl computes on {get_device_name()!r}, not {DEVICE!r}: unset VERL_PLATFORM.")
    result: dict[str, Any] = {"machine": _machine()}
    print(json.dumps(result["machine"]))

    def keep(name: str, figures: dict[str, dict[str, float]]) -> None:
        """Write a part as soon as it is measured: what comes after it may fail."""
        result[name] = figures
        if arguments.out:
            arguments.out.write_text(json.dumps(result, indent=2) + "\n")

    sizes = [(16, 4096), (32, 8192), (64, 16384)] if DEVICE == "cuda" else [(4, 64)]
    of_losses = losses(sizes, 31 if DEVICE == "cuda" else 3)
    keep("losses", of_losses)
    _show("forward + backward of a loss, against verl's", of_losses)
    of_updates: dict[str, dict[str, float]] = {}
    for name, figures in updates(9 if DEVICE == "cuda" else 1):
        of_updates[name] = figures
        keep("updates", of_updates)
        print(f"two updates with {name}: {figures['ratio']:.2f} of the time of verl's dppo_tv", flush=True)
    _show("two updates of Qwen3-0.6B, against verl's dppo_tv", of_updates)


if __name__ == "__main__":
    main()
