"""Every experiment with every method composes, and the check finds no error in it."""

from __future__ import annotations

import pytest

from drpo_verl.check.command import check_run
from drpo_verl.integration.search_path import config_dir

_EXPERIMENTS = config_dir() / "experiment"
EXPERIMENTS = sorted(str(path.relative_to(_EXPERIMENTS).with_suffix("")) for path in _EXPERIMENTS.rglob("*.yaml"))
METHODS = sorted(path.stem for path in (config_dir() / "method").glob("*.yaml"))

_MEGATRON = ("dppo/qwen3_30b_a3b_base_r3", "dppo/verl_script", "drpo/qwen3_30b_a3b_fp8_e2e")
_TOP_K = ("dppo_topk_kl", "dppo_topk_tv", "drpo_topk")
EXPECTED: dict[tuple[str, str], set[str]] = {
    # Router replay and FP8 in training are Megatron's alone, and Top-K is gathered from FSDP's logits.
    **{(experiment, method): {"top_k"} for experiment in _MEGATRON for method in _TOP_K},
}
"""The rules whose errors are expected of an experiment with a method."""


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_it_passes_with_every_method(experiment: str) -> None:
    wrong = {}
    for method in METHODS:
        errors = [
            each
            for each in check_run([f"experiment={experiment}", f"method={method}"]).findings
            if each.level == "error"
        ]
        if {each.rule for each in errors} != EXPECTED.get((experiment, method), set()):
            wrong[method] = [f"{each.rule}: {each}" for each in errors] or "an error that is expected has gone"
    assert not wrong


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_no_rule_fails(experiment: str) -> None:
    findings = check_run([f"experiment={experiment}"]).findings
    assert not [str(each) for each in findings if each.setting.startswith("rule ") or each.rule == "summary"]
