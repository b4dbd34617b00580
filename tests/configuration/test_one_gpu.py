"""The experiments for one GPU fit the cards that they are for, by the check."""

from __future__ import annotations

import pytest

from drpo_verl.configuration.compose import compose_run
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.preflight import check_run


@pytest.mark.parametrize("card", [24, 80])
@pytest.mark.parametrize("experiment", ["gpu_qwen3_0_6b", "gpu_smollm2", "gpu_tiny"])
def test_one_gpu_is_enough(experiment: str, card: int) -> None:
    config = compose_run([f"experiment={experiment}", f"check.gpu_memory_gib={card}"])
    findings = check_run(RunConfig(config))
    assert {finding.rule for finding in findings} <= {"data_files"}, findings  # nobody has made them here
    assert (config.trainer.nnodes, config.trainer.n_gpus_per_node, config.trainer.device) == (1, 1, "cuda")
    assert config.ray_kwargs.ray_init.address == "local"


def test_the_sanity_test_fits_one_gpu() -> None:
    findings = check_run(RunConfig(compose_run(["experiment=dppo/sanity_r1d", "hardware=1x1"])))
    assert not [each for each in findings if each.level == "error" or each.rule == "memory"], findings
