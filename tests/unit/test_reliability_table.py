"""The table of docs/reliability.md is made of what the tests of faults have noted."""

from __future__ import annotations

from pathlib import Path

import pytest
import reliability_table

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
DIED = {
    "fault": "the vLLM server is killed", "exit_code": 4, "seconds": 6.24, "gone_seconds": 12.6,
    "line": "error: the vLLM server (vLLMHttpServer, process 42) died: killed, in step 4 of 500. To go on from the "
    "checkpoint of step 2: python -m drpo_verl.train trainer.resume_mode=auto",
}  # fmt: skip
ANEW = DIED | {"line": "error: a | b in /tmp/x/y.log, before the end of step 1. No checkpoint was saved, so that ..."}


def test_a_row_says_what_happened_and_how_to_go_on() -> None:
    made = reliability_table.with_table(PAGE.read_text(), [DIED, ANEW, {"fault": "all samples are wrong"}])
    rows = made.partition(reliability_table.BEGIN)[2].partition(reliability_table.END)[0].strip().splitlines()
    assert rows[2:] == [
        "| the vLLM server is killed | the vLLM server (vLLMHttpServer, process N) died: killed | 4 | 6.2 s | 13 s | "
        "the printed command, from the last checkpoint |",
        "| the vLLM server is killed | a / b in .../y.log | 4 | 6.2 s | 13 s | anew: no checkpoint yet |",
        "| all samples are wrong | nothing: it goes on | 0 | | | |",
    ]
    for mark, side in ((reliability_table.BEGIN, 0), (reliability_table.END, 2)):
        assert made.partition(mark)[side] == PAGE.read_text().partition(mark)[side]  # the rest is as it was


def test_a_page_without_the_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="the page has to hold the two lines"):
        reliability_table.with_table("# Nothing", [])
