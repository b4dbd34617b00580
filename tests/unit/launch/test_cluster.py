"""What a run leaves out, and refuses, on a Ray cluster that is there already."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from drpo_verl.configuration import search_path
from drpo_verl.launch import cluster
from drpo_verl.train import export_environment


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "VERL_", "OMP_"))}
    monkeypatch.setattr(os, "environ", kept)


def _config(*overrides: str) -> DictConfig:
    search_path.register()
    with initialize_config_dir(str(search_path.config_dir()), version_base="1.3"):
        return compose("train", ["experiment=cpu_tiny", *overrides])


def test_a_run_on_a_cpu_starts_a_ray_of_its_own_unless_told_of_another() -> None:
    assert cluster.cluster_address(_config()) is None
    assert _config().ray_kwargs.ray_init.address == "local"  # not one that happens to run on this machine
    os.environ["RAY_ADDRESS"] = "10.0.0.1:6379"
    assert cluster.cluster_address(_config()) == "10.0.0.1:6379"
    assert cluster.cluster_address(_config("ray_kwargs.ray_init.address=local")) is None


def test_another_experiment_joins_what_the_environment_names() -> None:
    config = OmegaConf.create({"ray_kwargs": {"ray_init": {"num_cpus": None}}})
    assert cluster.cluster_address(config) is None
    os.environ["RAY_ADDRESS"] = "auto"
    assert cluster.cluster_address(config) == "auto"


def test_a_dashboards_address_is_refused() -> None:
    os.environ["RAY_ADDRESS"] = "http://127.0.0.1:8265"
    with pytest.raises(ValueError, match=r"RAY_ADDRESS=http://127.0.0.1:8265 .* RAY_API_SERVER_ADDRESS"):
        cluster.cluster_address(_config())


def test_what_only_the_one_who_starts_ray_decides_is_left_out() -> None:
    config = _config("+ray_kwargs.ray_init._temp_dir=/tmp/x")
    cluster.join_cluster(config)
    settings = config.ray_kwargs.ray_init
    assert set(settings) == {"address", "runtime_env"}  # ray.init refuses the rest with an address
    variables = settings.runtime_env.env_vars
    assert variables.VERL_PLATFORM == "cpu" and variables.OMP_NUM_THREADS == "1"  # these have to reach all workers
    assert "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER" not in variables


def test_a_jobs_variables_win_in_the_driver_and_in_the_workers() -> None:
    os.environ["OMP_NUM_THREADS"] = "4"
    config = _config()
    cluster.join_cluster(config)
    export_environment(config)
    assert config.ray_kwargs.ray_init.runtime_env.env_vars.OMP_NUM_THREADS == os.environ["OMP_NUM_THREADS"] == "4"
    assert os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] == "1"  # without, Ray refuses a variable that both have


def test_a_jobs_folder_is_absolute() -> None:
    cluster.require_shared_folder("outputs/x")  # no job
    os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"] = "{}"
    cluster.require_shared_folder("/shared/runs/x")
    with pytest.raises(ValueError, match=r"run\.dir=outputs/x is relative.*SHARED_DIR"):
        cluster.require_shared_folder("outputs/x")


@pytest.mark.parametrize(("there", "enough"), [({"CPU": 2.0}, False), ({"CPU": 2.0, "GPU": 1.0}, False),
                                               ({"CPU": 3.0, "GPU": 1.0}, True)])  # fmt: skip
def test_a_cluster_that_is_too_small_is_refused(
    there: dict[str, float], enough: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    calls: list[str] = []
    monkeypatch.setattr(ray, "init", lambda **settings: calls.append(settings["address"]))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "cluster_resources", lambda: there)
    if enough:
        cluster.require_resources("here", gpus=1, cpus=3)
    else:
        with pytest.raises(
            cluster.ClusterTooSmallError, match=r"here counts \d GPUs and 2 CPUs.*--num-gpus=1 .*--num-cpus=11"
        ):
            cluster.require_resources("here", gpus=1, cpus=3)
    assert calls == ["here", "shutdown"]


@pytest.mark.parametrize("goes_after", [0, 2, None])
def test_a_second_run_waits_for_the_first_and_then_is_refused(
    goes_after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    asked: list[tuple[str, str]] = []
    calls: list[str] = []

    def get_actor(name: str, namespace: str) -> object:
        asked.append((name, namespace))
        if goes_after is not None and len(asked) > goes_after:
            raise ValueError("Failed to look up actor")
        return SimpleNamespace()

    monkeypatch.setattr(ray, "init", lambda **settings: calls.append(settings["address"]))
    monkeypatch.setattr(ray, "shutdown", lambda: calls.append("shutdown"))
    monkeypatch.setattr(ray, "get_actor", get_actor)
    monkeypatch.setattr(cluster.time, "sleep", lambda seconds: None)
    monkeypatch.setattr(cluster.time, "monotonic", lambda: float(len(asked)))
    if goes_after is None:
        with pytest.raises(cluster.ClusterBusyError, match=r"another run of verl .* at here.*ray job stop"):
            cluster.require_free_cluster("here", wait_seconds=5)
    else:
        cluster.require_free_cluster("here", wait_seconds=5)
    assert calls == ["here", "shutdown"]
    # The name that verl's queue really has.
    import inspect

    from transfer_queue import interface

    name, namespace = asked[0]
    assert f'ray.get_actor("{name}", namespace="{namespace}")' in inspect.getsource(interface)
