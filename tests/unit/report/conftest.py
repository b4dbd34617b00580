"""Folders like those of real runs, made from the metrics file of one (three steps of dppo_topk_tv on the CPU)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from drpo_verl.metrics.bins import PROBABILITY_BINS

REAL = Path(__file__).parents[2] / "data" / "dppo_topk_tv.jsonl"

MakeRun = Callable[..., Path]


def real_records() -> list[dict[str, Any]]:
    return [json.loads(line) for line in REAL.read_text().splitlines()]


def _derived(data: dict[str, float], scale: float) -> dict[str, float]:
    """The metrics that the real run was too early for, from those that it has, all of them scaled."""
    diff = data["mismatch/abs_prob_diff_mean"]
    more = {
        "trust_region/attenuated_frac": 0.1, "trust_region/gradient_removed_frac": 0.01, "trust_region/delta": 0.2,
        "trust_region/anchor_abs_prob_diff_mean": 0.01, "trust_region/anchor_abs_prob_diff_max": 0.2,
        "mismatch/partition_divergence_mean": 0.02, "mismatch/partition_divergence_max": 0.3, "actor/entropy": 0.4,
        "actor/loss_scale": 65536.0, "actor/skipped_update_frac": 0.1,
        "trust_region/sequence_masked_frac": 0.05,
        "training/off_policy/trajectory_staleness/mean": 0.5, "training/off_policy/trajectory_staleness/max": 1.0,
    }  # fmt: skip
    for series, factor in (("inference_mismatch", 0.1), ("policy_drift", 1.0)):
        more |= {f"{series}/{name}": factor * diff for name in (
            "abs_prob_diff_mean", "abs_prob_diff_p99", "abs_prob_diff_max", "kl_k1", "kl_k3", "chi2",
            "abs_prob_diff_mean_positive_advantage", "abs_prob_diff_mean_negative_advantage")}  # fmt: skip
        more |= {f"{series}/{name}": 1.0 - factor * diff for name in ("ess", "correlation", "ratio_p01", "ratio_p50")}
        more[f"{series}/ratio_p99"] = 1.0 + factor * diff
        for sign, part in (("", 1.0), ("_positive_advantage", 0.5), ("_negative_advantage", 0.4)):
            more |= {f"{series}_by_prob/share_{name}{sign}": part / len(PROBABILITY_BINS) for name in PROBABILITY_BINS}
            more |= {f"{series}_by_prob/abs_prob_diff_{name}{sign}": factor * diff for name in PROBABILITY_BINS}
    more["policy_drift/anchor_abs_prob_diff_mean"] = 0.9 * diff
    more |= {f"rollout_corr/{name}": 0.1 * diff for name in ("kl", "k3_kl", "chi2_token", "log_ppl_diff")}
    more |= {f"training/rollout_probs_diff_{name}": 0.1 * diff for name in ("mean", "max", "std")}
    more |= {"rollout_corr/ppl_ratio": 1.0 + 0.1 * diff, "training/rollout_actor_probs_pearson_corr": 1.0 - 0.1 * diff}
    return {name: scale * value for name, value in (data | more).items()}


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """Makes a run's folder.

    Arguments of what it returns: ``name`` of the folder; ``method`` as chosen with ``method=``; ``settings`` as dotted
    keys; ``scale`` for every metric; ``complete`` for the metrics and files of a run as it is made today, instead of
    the real metrics file alone; ``metrics`` by step, in the place of those of the real run.
    """

    def make(
        name: str, method: str = "drpo", *, scale: float = 1.0, complete: bool = True,
        metrics: dict[int, dict[str, Any]] | None = None, **settings: Any,
    ) -> Path:  # fmt: skip
        folder = tmp_path / name
        hydra = folder / ".hydra"
        hydra.mkdir(parents=True)
        if not complete:
            (folder / "metrics.jsonl").write_text(REAL.read_text())
            return folder
        records = [{"step": each["step"], "data": _derived(each["data"], scale)} for each in real_records()]
        records.insert(0, {"step": 0, "data": {"val-core/drpo_verl/arithmetic/acc/mean@1": 0.25}})
        records[-1]["data"]["val-core/drpo_verl/arithmetic/acc/mean@1"] = 0.5
        if metrics is not None:
            records = [{"step": step, "data": data} for step, data in metrics.items()]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(each) + "\n" for each in records))
        loss_mode = {"cispo": "pg_tis"}.get(method, method)
        named = method if loss_mode != method else "${actor_rollout_ref.actor.policy_loss.loss_mode}"
        config = OmegaConf.create({"run": {"dir": "outputs/${trainer.experiment_name}", "method": named}})
        settings = {"trainer.experiment_name": name, "actor_rollout_ref.actor.policy_loss.loss_mode": loss_mode,
                    "actor_rollout_ref.actor.optim.lr": 0.0003, "data.seed": 1, **settings}  # fmt: skip
        for key, value in settings.items():
            OmegaConf.update(config, key, value, force_add=True)
        OmegaConf.save(config, hydra / "config.yaml")
        (folder / "environment.json").write_text(json.dumps({"verl": "0.9.1", "python": "3.11.2"}))
        worst = {"abs_prob_diff": 0.25, "mu": 0.5, "pi": 0.75, "advantage": -1.0, "position": 2, "token": " <b>",
                 "context": "12+3"}  # fmt: skip
        lines = [{"step": step, **worst, "abs_prob_diff": 0.25 - step / 100} for step in range(1, 8)]
        (folder / "worst_tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        measured = {"step": 0, "data_source": "drpo_verl/arithmetic", "accuracy": 0.25, "problems": 16}
        summary = {"validation": [{**measured, "interval_95": [0.1, 0.5]}]}
        (folder / "summary.json").write_text(json.dumps(summary))
        return folder

    return make
