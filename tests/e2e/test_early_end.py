"""A run whose data is over before its steps, which only verl's filter of long prompts shows: it says so, and fails.

It is in the demo's own precision, a quantised rollout, so that it shows what comes of that in a real run, too.
"""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from stack import SHORT, Run, start

MISMATCH = "inference_mismatch/abs_prob_diff_mean"


@pytest.fixture(scope="module")
def early_run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Two steps of three, with the demo's precision (weights through FP8 and back) and two updates a rollout."""
    folder = tmp_path_factory.mktemp("early")
    # 8 of the 16 prompts have more than data.max_prompt_length=8 tokens; the policy's tokenizer is made with the run.
    problems = [(f"{10 + n}+{20 + n}", 30 + 2 * n) for n in range(8)]
    problems += [(f"{10 + n}+{20 + n}+{10 + n}", 40 + 3 * n) for n in range(8)]
    rows = [
        {
            "data_source": "drpo_verl/arithmetic",
            "prompt": [{"role": "user", "content": question}],
            "reward_model": {"style": "rule", "ground_truth": answer},  # a whole number is its text
            "extra_info": {"index": 0},
        }
        for question, answer in problems
    ]
    for name, part in (("train", rows), ("val", rows[:8])):
        pq.write_table(pa.Table.from_pylist(part), folder / f"{name}.parquet")
    others = [each for each in SHORT if not each.startswith(("prepare.", "trainer.total_training_steps"))]
    return start(
        folder / "run", *others, "actor_rollout_ref.actor.ppo_mini_batch_size=4", "prepare.data=null",
        f"data.train_files={folder}/train.parquet", f"data.val_files={folder}/val.parquet",
        "data.filter_overlong_prompts=true", "trainer.total_training_steps=3", "trainer.total_epochs=2",
        expect_success=False,
    )  # fmt: skip


def test_a_run_that_ends_early_fails_and_says_how_to_go_on(early_run: Run) -> None:
    assert early_run.returncode == 1, early_run.output
    assert [step.step for step in early_run.steps] == [1, 2]
    assert (
        "error: the run ended after 2 of 3 steps: trainer.total_epochs=2 passes over its data are no more."
        in early_run.output
    )
    assert "No checkpoint was saved, so that it begins again. To go on: " in early_run.output
    assert "trainer.total_epochs=3" in early_run.output
    assert (early_run.folder / "summary.json").exists() and not (early_run.folder / "checkpoints").exists()


def test_the_demo_has_a_mismatch_in_every_step_and_drift_on_top_of_it(early_run: Run) -> None:
    # The first weights of vLLM are random: what it samples from comes with a weight sync, in the first step as well.
    # fp32 on both sides has 1e-7, so that a sync without rounding would be seen.
    for step in early_run.steps:
        assert 3e-4 < step.metrics[MISMATCH] < 0.03
        assert step.metrics[MISMATCH] < step.metrics["policy_drift/abs_prob_diff_mean"]
    number = r"0\.\d+"
    before, after = (rf"{number} before any update \(mismatch\)", rf"{number} after updates \(mismatch and drift\)")
    assert re.search(f"differ by {before} and by {after}", early_run.output), early_run.output
