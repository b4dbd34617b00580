"""The socket through which vLLM gets a rank's weights, under a name that no other run on the machine has.

verl has the id of the Ray job in its name, and each Ray cluster counts its jobs from 1: two runs on one machine, each
with a cluster of its own, have the same. One then takes the socket away from the other, which waits for ever, or hands
its weights to the other's vLLM, which nothing would show.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from functools import wraps
from typing import Any

import ray

from drpo_verl.seams import warn

_JOB = "VERL_RAY_JOB_ID"
"""The variable in which verl's server tells vLLM's processes the part of the name that is to be unique."""


def unique_job() -> str:
    """The id of the Ray job, with a digest of what tells its Ray cluster from others."""
    context = ray.get_runtime_context()
    # The session's name has time and process in it. A Ray that does not tell it (verl takes any from 2.41 on) has the
    # address of the cluster's head, which no two clusters have at a time, unless they share the folder of the sockets
    # and not the network.
    cluster = context.get_session_name() if hasattr(context, "get_session_name") else context.gcs_address
    digest = hashlib.sha256(cluster.encode()).hexdigest()
    return f"{context.get_job_id()}-{digest[:12]}"  # short: the path of a socket has 107 bytes at most


def name_for_sender(initialise: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``ServerAdapter.__init__``, which names the socket in the trainer's rank."""

    @wraps(initialise)
    def initialising(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        job = ray.get_runtime_context().get_job_id()
        if f"-{job}-" in self.zmq_handle:
            self.zmq_handle = self.zmq_handle.replace(f"-{job}-", f"-{unique_job()}-")
        else:
            warn(f"verl's socket for the weights is {self.zmq_handle}, which another run on this machine may have too.")

    return initialising


def name_for_receiver(initialise: Callable[..., None]) -> Callable[..., None]:
    """Wrap ``vLLMHttpServer.__init__``, from whose environment vLLM's processes take the name."""

    @wraps(initialise)
    def initialising(self: Any, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **kwargs)
        # Where verl has not put the job's id there, the sender's name has none either.
        if os.environ.get(_JOB) == ray.get_runtime_context().get_job_id():
            os.environ[_JOB] = unique_job()

    return initialising
