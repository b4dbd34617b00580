"""Packages that verl loads beside ours: which they are, where their groups are, and what is wrong with them."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from drpo_verl.check.method import loss_mode
from drpo_verl.configuration import plugins, search_path
from drpo_verl.configuration.compose import compose_run
from drpo_verl.configuration.run_config import RunConfig

OURS = EntryPoint("drpo_verl", "drpo_verl.plugin", "verl.plugins")


@pytest.fixture(autouse=True)
def own_methods(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package with a method, installed; a module with another beside its file; and one that can not be imported."""
    package = tmp_path / "own_methods_package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "loading.py").touch()
    (tmp_path / "own_methods_module.py").touch()
    (tmp_path / "own_methods_broken.py").write_text("raise RuntimeError('no such device')\n")
    for folder, name in ((package, "in_a_package"), (tmp_path, "beside_a_module")):
        method = folder / "hydra_configs" / "method"
        method.mkdir(parents=True)
        text = f"# @package _global_\ndefaults:\n  - drpo\nrun:\n  method: {name}\n"
        (method / f"{name}.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(
        plugins, "_installed", lambda: (OURS, EntryPoint("own", "own_methods_package.loading", "verl.plugins"))
    )
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "drpo_verl.plugin,own_methods_module")
    monkeypatch.delenv("VERL_USE_EXTERNAL_PLUGINS", raising=False)
    return tmp_path


def test_their_groups_are_found_beside_ours(own_methods: Path) -> None:
    folders = [own_methods / "hydra_configs", own_methods / "own_methods_package" / "hydra_configs"]
    assert plugins.plugin_config_dirs() == folders
    assert {"in_a_package", "beside_a_module", "drpo"} <= set(search_path.methods())
    for name in ("in_a_package", "beside_a_module"):
        config = compose_run(["experiment=cpu_tiny", f"method={name}"])
        assert (config.run.method, config.actor_rollout_ref.actor.policy_loss.loss_mode) == (name, "drpo")


@pytest.mark.parametrize(
    ("policy", "enabled"), [("auto", True), ("none", False), ("drpo_verl", False), (" drpo_verl, Own ", True)]
)
def test_the_choice_of_plugins_by_verl_is_kept_to(policy: str, enabled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_PLUGINS", policy)
    assert plugins.plugin_modules() == ["own_methods_module", *(["own_methods_package.loading"] if enabled else [])]


def test_what_can_not_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not list(plugins.plugin_errors())
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "own_methods_broken")
    ((module, error),) = plugins.plugin_errors()
    assert module == "own_methods_broken" and str(error) == "no such device"


def test_a_loss_mode_that_nobody_registered_is_refused_with_what_kept_a_plugin_from_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = EntryPoint("own", "own_methods_broken", "verl.plugins")
    monkeypatch.setattr(plugins, "_installed", lambda: (OURS, broken))
    run = RunConfig(OmegaConf.create({"actor_rollout_ref": {"actor": {"policy_loss": {"loss_mode": "own"}}}}))
    mode, plugin = loss_mode(run)
    assert mode.message.startswith("is not a loss mode; known: ")
    assert plugin.setting == "own_methods_broken"
    assert plugin.message == "is a plugin that verl could not load (RuntimeError: no such device)."


def test_a_module_that_is_nowhere_has_no_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VERL_USE_EXTERNAL_MODULES", "own_methods_of_nobody")
    assert len(plugins.plugin_config_dirs()) == 1
