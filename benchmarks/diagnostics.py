"""What the diagnostics cost in a step of the demo: ``python -m benchmarks.diagnostics [RUN]``.

One FSDP2 rank of the demo's actor updates on a batch of the demo's size, by turns with all diagnostics (moments,
quantiles, bins, the worst token) and with the trust region's own metrics only: the difference of each pair. It is given
as a share of the time of a step of RUN (by default outputs/demo), a finished run of the demo on the same machine, since
the rest of a step has none of it.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

os.environ.setdefault("VERL_PLATFORM", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

from benchmarks.actor import batch, be_the_only_rank, configuration, sample, worker
from drpo_verl.run_folder.steps import METRICS_FILE, read_steps
from drpo_verl.run_folder.worst_tokens import PATH_VARIABLE

SAMPLES, PROMPT, RESPONSE, VOCABULARY = 96, 7, 4, 19
PAIRS = 60
_SECTION = "actor_rollout_ref.actor.policy_loss.diagnostics"


def _batch() -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)

    def tokens(count: int) -> torch.Tensor:
        return torch.randint(5, VOCABULARY, (count,), generator=generator)

    return [
        sample(tokens(PROMPT), tokens(RESPONSE), -torch.rand(RESPONSE, generator=generator),
               torch.randn(1, generator=generator))
        for _ in range(SAMPLES)
    ]  # fmt: skip


def main() -> None:
    """Print the seconds of an update, the difference, and its share of a step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("outputs/demo"), help="folder of a finished run")
    step_seconds = statistics.median(
        step.metrics["timing_s/step"]
        for step in read_steps(parser.parse_args().run / METRICS_FILE)
        if "timing_s/step" in step.metrics
    )
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.losses import ppo_loss

    from drpo_verl.models.tiny_policy import ensure_tiny_policy

    with tempfile.TemporaryDirectory() as folder:
        be_the_only_rank()
        config = configuration()
        config.actor_rollout_ref.model.path = str(ensure_tiny_policy(config.prepare.cache_dir))
        actor = worker(config).actor
        losses = {}
        for diagnostics in (False, True):
            section = configuration(f"{_SECTION}={diagnostics}").actor_rollout_ref.actor
            losses[diagnostics] = partial(ppo_loss, config=omega_conf_to_dataclass(section))
        rows = _batch()

        def seconds(diagnostics: bool) -> float:
            actor.set_loss_fn(losses[diagnostics])
            os.environ.pop(PATH_VARIABLE, None)
            if diagnostics:
                os.environ[PATH_VARIABLE] = str(Path(folder, "worst_tokens.jsonl"))
            actor.on_weight_sync()
            data = batch(rows, samples_per_update=SAMPLES // 2)  # anew: verl takes its settings out of it
            start = time.perf_counter()
            actor.train_mini_batch(data)
            return time.perf_counter() - start

        seconds(False), seconds(True)
        pairs = [(seconds(True), seconds(False)) for _ in range(PAIRS)]
    cost = statistics.median(with_them - without for with_them, without in pairs)
    print(f"update with diagnostics {1e3 * statistics.median(a for a, _ in pairs):.1f} ms")
    print(f"update without them     {1e3 * statistics.median(b for _, b in pairs):.1f} ms")
    print(f"difference of pairs     {1e3 * cost:.1f} ms, {cost / step_seconds:.2%} of a step of {step_seconds:.2f} s")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
