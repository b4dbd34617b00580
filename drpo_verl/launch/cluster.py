"""A run on a Ray cluster that is there already: one that ``RAY_ADDRESS`` names, as in every submitted job."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from drpo_verl.configuration.run_config import DRIVER_CPUS

RAY_INIT = "ray_kwargs.ray_init"
RELEASE_SECONDS = 60.0
"""How long a run that has just been stopped may take to release the cluster."""

# Ray refuses, or ignores, these in a process that joins a cluster instead of starting one.
_NEW_CLUSTER_SETTINGS = (
    "num_cpus", "num_gpus", "resources", "labels", "object_store_memory", "include_dashboard", "_system_config",
    "_temp_dir", "_node_ip_address", "_node_name",
)  # fmt: skip
_NEW_CLUSTER_VARIABLES = (
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
    "RAY_USAGE_STATS_ENABLED",
    "RAY_prestart_worker_first_driver",
    "RAY_worker_register_timeout_seconds",
)
_JOB_CONFIG = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # Ray's name for the environment variable that a submitted job has


class ClusterTooSmallError(RuntimeError):
    """The Ray cluster has less than the run reserves, and so will never have room for it."""


class ClusterBusyError(RuntimeError):
    """Another run of verl is on the Ray cluster, and both would use one TransferQueue."""


def cluster_address(config: DictConfig) -> str | None:
    """The running cluster that a run is going to join; None if it starts a Ray of its own.

    A Ray that runs on this machine and that nothing names is left for Ray itself to find.

    Raises:
        ValueError: when it is the address of a dashboard.
    """
    configured = OmegaConf.select(config, f"{RAY_INIT}.address")
    if configured == "local":
        return None
    address = configured or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith("http"):
        raise ValueError(
            f"RAY_ADDRESS={address} is where jobs are submitted to, and no run can join that: set "
            "RAY_API_SERVER_ADDRESS to it instead and submit a recipe (recipes/README.md), or unset RAY_ADDRESS."
        )
    return address


def join_cluster(config: DictConfig) -> None:
    """Leave out of a run's ``ray_kwargs.ray_init`` what only the process that starts Ray decides."""
    settings = OmegaConf.select(config, RAY_INIT)
    variables = OmegaConf.select(config, f"{RAY_INIT}.runtime_env.env_vars") or {}
    with open_dict(config):
        for name in _NEW_CLUSTER_SETTINGS:
            settings.pop(name, None)
        for name in _NEW_CLUSTER_VARIABLES:
            variables.pop(name, None)
    # A job's specification may set what the experiment sets, too. export_environment has let the job's win in both.
    os.environ.setdefault("RAY_OVERRIDE_JOB_RUNTIME_ENV", "1")


def require_shared_folder(folder: str) -> None:
    """Refuse a submitted job's relative ``run.dir``, which is given as it was set.

    Raises:
        ValueError: in a job, unless the folder is an absolute path.
    """
    if _JOB_CONFIG in os.environ and not Path(folder).is_absolute():
        raise ValueError(
            f"run.dir={folder} is relative, and the current folder of a submitted job is a copy that Ray deletes after "
            "it. Set it to a folder that every node of the cluster has: run.dir=/shared/runs/<name>, or "
            "SHARED_DIR=/shared for a recipe."
        )


def require_resources(address: str, gpus: int, cpus: int) -> None:
    """Refuse a cluster that has less than a run reserves: without CPUs it would wait for ever.

    Args:
        address: the cluster's address.
        gpus: how many GPUs (worker slots, on CPUs) the run reserves on all nodes together.
        cpus: how many CPUs it reserves on all nodes together.

    Raises:
        ClusterTooSmallError: with what there is, what is needed, and how to say so to Ray.
    """
    import ray

    with _joined(address):
        there = ray.cluster_resources()
    counted = {name: int(there.get(name, 0)) for name in ("GPU", "CPU")}
    if counted["GPU"] < gpus or counted["CPU"] < cpus:
        raise ClusterTooSmallError(
            f"the Ray cluster at {address} counts {counted['GPU']} GPUs and {counted['CPU']} CPUs, and the run "
            f"reserves {gpus} and {cpus}. Add nodes; or, where there are no GPUs, start Ray with --num-gpus={gpus} "
            f"(slots for workers) --num-cpus={cpus + DRIVER_CPUS} (which it only counts)."
        )


def require_free_cluster(address: str, wait_seconds: float = RELEASE_SECONDS) -> None:
    """Wait until no other run of verl is on the cluster.

    All runs on a cluster would share one TransferQueue, since it has a fixed name, and train on each other's samples.

    Args:
        address: the cluster's address.
        wait_seconds: how long a run that has just been stopped may take to be gone.

    Raises:
        ClusterBusyError: when there still is one.
    """
    with _joined(address):
        deadline = time.monotonic() + wait_seconds
        while _transfer_queue_is_alive():
            if time.monotonic() > deadline:
                raise ClusterBusyError(
                    f"another run of verl is on the Ray cluster at {address}, and both would train on the samples of "
                    "either: wait for it, end it (ray job list; ray job stop <id>), or use another cluster."
                )
            time.sleep(1)


@contextlib.contextmanager
def _joined(address: str) -> Iterator[None]:
    """Joins the cluster for a question, before the run joins it with an environment of its own."""
    import ray

    ray.init(address=address, log_to_driver=False)
    try:
        yield
    finally:
        ray.shutdown()


def _transfer_queue_is_alive() -> bool:
    import ray

    try:
        ray.get_actor("TransferQueueController", namespace="transfer_queue")
    except ValueError:
        return False
    return True
