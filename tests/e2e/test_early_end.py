"""A run whose data is over before its steps, which only verl's filter of long prompts shows: it says so, and fails."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from stack import ONE_UPDATE, SHORT, start


def test_a_run_that_ends_early_fails_and_says_how_to_go_on(tmp_path: Path) -> None:
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
        pq.write_table(pa.Table.from_pylist(part), tmp_path / f"{name}.parquet")
    others = [each for each in SHORT if not each.startswith(("prepare.", "trainer.total_training_steps"))]
    run = start(
        tmp_path / "early", *others, ONE_UPDATE, "prepare.data=null", f"data.train_files={tmp_path}/train.parquet",
        f"data.val_files={tmp_path}/val.parquet", "data.filter_overlong_prompts=true", "trainer.total_training_steps=2",
        "trainer.total_epochs=1", expect_success=False,
    )  # fmt: skip
    assert run.returncode == 1, run.output
    assert [step.step for step in run.steps] == [1]
    assert (
        "error: the run ended after 1 of 2 steps: trainer.total_epochs=1 pass over its data is no more." in run.output
    )
    assert "No checkpoint was saved, so that it begins again. To go on: " in run.output
    assert "trainer.total_epochs=2" in run.output
    assert (run.folder / "summary.json").exists() and not (run.folder / "checkpoints").exists()
