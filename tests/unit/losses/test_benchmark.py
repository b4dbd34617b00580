"""The benchmarks of the losses run every loss that they name, and see how many tensors each saves."""

from __future__ import annotations

import os
import runpy
import sys

import pytest
from torch import Tensor

from benchmarks import gpu, policy_loss
from benchmarks.policy_loss import COUNTERPARTS, saved_tensors, step


@pytest.fixture
def data() -> dict[str, Tensor]:
    return policy_loss.batch()


@pytest.mark.parametrize("diagnostics", [False, True])
@pytest.mark.parametrize("name", list(COUNTERPARTS))
def test_a_loss_saves_one_tensor_for_its_gradient(name: str, diagnostics: bool, data: dict[str, Tensor]) -> None:
    run = step(name, data, diagnostics)
    assert saved_tensors(run) == 1
    gradient = data["log_prob"].grad
    assert gradient is not None and gradient.isfinite().all() and gradient.count_nonzero() > 0
    assert not gradient[~data["response_mask"]].any()


def test_the_benchmark_of_a_gpu_times_the_same_losses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    figures = gpu.losses([(2, 64)], count=1)
    assert len(figures) == 2 * len(COUNTERPARTS) and all(each["ratio"] > 0 for each in figures.values())


@pytest.mark.parametrize(("limit", "pairs"), [(0.0, 1), (60.0, 3)])
def test_a_row_of_the_benchmark_of_a_gpu_ends_in_time(
    limit: float, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    assert gpu.pairs(lambda: None, lambda: None, count=3, limit=limit)["pairs"] == pairs


def test_no_benchmark_that_is_imported_chooses_the_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    # Chosen so, the updates of `make bench-gpu` were once timed on the CPU of the GPU's machine.
    monkeypatch.delenv("VERL_PLATFORM")
    monkeypatch.setattr(sys, "argv", ["benchmarks.gpu"])
    for module in (policy_loss, gpu):
        runpy.run_path(str(module.__file__), run_name="imported")
    assert "VERL_PLATFORM" not in os.environ
