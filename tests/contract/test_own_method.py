"""The package of docs/own_method.md, as it stands there, beside a wheel of ours: its method is one like any other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from wheels import ROOT, build_wheel, install

PAGE = (ROOT / "docs" / "own_method.md").read_text()
FILES = re.findall(r"^```\w+ (\S+)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)

# What main_ppo composes, what verl's validation says to it, and the loss that its registry has.
TRAINED = """
import contextlib, io, runpy, sys

sys.argv = ["main_ppo", "--cfg", "job", "+method=dppo_hellinger", "actor_rollout_ref.rollout.name=vllm",
            "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1",
            "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=1"]
with contextlib.redirect_stdout(io.StringIO()) as printed:
    runpy.run_module("verl.trainer.main_ppo", run_name="__main__")

import torch
from omegaconf import OmegaConf
from verl.trainer.ppo.core_algos import get_policy_loss_fn
from verl.trainer.ppo.utils import need_critic, need_reference_policy
from verl.utils.config import omega_conf_to_dataclass, validate_config

import drpo_verl

config = OmegaConf.create(printed.getvalue())
validate_config(config, need_reference_policy(config), need_critic(config))
actor = omega_conf_to_dataclass(config.actor_rollout_ref.actor)
actor.global_batch_info.update(dp_size=1, global_batch_size=2, loss_scale_factor=1)

pi = torch.tensor([[0.5, 0.3], [0.5, 0.3]])
mu = torch.tensor([[0.3, 0.5], [0.48, 0.32]])  # sqrt(.5) - sqrt(.3) is .16
log_pi = pi.log().requires_grad_()
loss, _ = get_policy_loss_fn("dppo_hellinger")(
    old_log_prob=mu.log(), log_prob=log_pi, advantages=torch.ones(2, 2), response_mask=torch.ones(2, 2),
    loss_agg_mode=actor.loss_agg_mode, config=actor,
)
loss.backward()
torch.testing.assert_close(log_pi.grad, -torch.tensor([[0.0, 1.0], [1.0, 1.0]]) * pi / mu / 2)
print(drpo_verl.__file__)
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The package's files."""
    folder = tmp_path_factory.mktemp("source")
    for name, text in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def site(wheel: Path, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two folders of packages installed from their wheels: ours, and the package's."""
    folder = tmp_path_factory.mktemp("site")
    install(wheel, folder / "ours")
    install(build_wheel(source, folder / "wheel"), folder / "own")
    return folder


def _start(arguments: list[str], folder: Path, *path: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, path)), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_verl_trains_with_it_however_it_has_loaded_it(site: Path, source: Path, tmp_path: Path) -> None:
    script = ["-c", TRAINED]
    runs = {
        "by its entry point": _start(script, tmp_path, site / "ours", site / "own"),
        "by the variable": _start(script, tmp_path, site / "ours", source, VERL_USE_EXTERNAL_MODULES="dppo_hellinger"),
    }
    for way, run in runs.items():
        out, errors = run.communicate(timeout=400)
        assert run.returncode == 0, f"{way}: {errors[-4000:]}"
        assert out.splitlines()[-1] == str(site / "ours" / "drpo_verl" / "__init__.py")
        assert "could not attach" not in errors and "not registered" not in errors


def test_the_check_knows_it(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERL_PLATFORM")  # the experiment's, which verl has to be imported with
    check = ["-m", "drpo_verl.cli", "check", "--json", "experiment=cpu_tiny", "method=dppo_hellinger"]
    run = _start(check, tmp_path, site / "ours", site / "own")
    out, errors = run.communicate(timeout=400)
    assert run.returncode == 0 and '"method": "dppo_hellinger"' in out, out + errors
