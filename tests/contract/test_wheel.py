"""An installed wheel is found by verl and by Hydra as a checkout is."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

COMPOSE = """
import sys
import verl, verl.trainer
from pathlib import Path
from hydra import compose, initialize_config_dir
import drpo_verl
with initialize_config_dir(str(Path(verl.trainer.__file__).parent / "config"), version_base=None):
    config = compose("ppo_trainer", ["actor_rollout_ref.rollout.name=vllm", "+method=dppo_binary_kl"])
print(drpo_verl.__file__, config.actor_rollout_ref.actor.policy_loss.delta)
"""


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments], check=True, capture_output=True, timeout=400)


def test_the_wheel_carries_the_configuration_and_the_entry_points(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    _pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(root))
    (wheel,) = tmp_path.glob("drpo_verl-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for name in ("hydra_configs/method/drpo.yaml", "py.typed", "report/page.html.jinja"):
        assert f"drpo_verl/{name}" in names, name
    assert not any(name.startswith(("tests/", "hydra_configs/")) for name in names)

    site = tmp_path / "site"
    _pip("install", "--no-deps", "--target", str(site), str(wheel))
    run = subprocess.run(
        [sys.executable, "-c", COMPOSE],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.splitlines()[-1] == f"{site / 'drpo_verl' / '__init__.py'} 0.05"
