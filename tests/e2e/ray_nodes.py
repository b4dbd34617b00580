"""A Ray cluster of two nodes on this machine, on loopback, for as long as standard input is open.

    python ray_nodes.py TEMP_DIR DASHBOARD_PORT

The environment decides how it authenticates. Prints the cluster's address once it is up.
"""

from __future__ import annotations

import socket
import sys

from ray._private.utils import write_ray_address
from ray.cluster_utils import Cluster

# One logical GPU each: what needs two is on both. The CPUs are oversubscribed, as in hydra_configs/hardware/cpu.yaml.
NODE = {"num_cpus": 16, "num_gpus": 1, "object_store_memory": 300_000_000}


def free_port() -> int:
    """A port for a node's agent, whose default another Ray on this machine may have: it would take no jobs then."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def main() -> None:
    temp_dir, dashboard_port = sys.argv[1], int(sys.argv[2])
    cluster = Cluster()
    try:
        cluster.add_node(
            temp_dir=temp_dir, include_dashboard=True, dashboard_host="127.0.0.1", dashboard_port=dashboard_port,
            dashboard_agent_listen_port=free_port(), **NODE
        )  # fmt: skip
        # A folder of its own, as on a machine of its own: a node removes a job's files when it no longer needs them.
        cluster.add_node(temp_dir=f"{temp_dir}-2", dashboard_agent_listen_port=free_port(), **NODE)
        # As `ray start` does: else a job gets the address of any Ray on this machine, that of another test as well.
        for folder in (temp_dir, f"{temp_dir}-2"):
            write_ray_address(cluster.address, folder)
        print(cluster.address, flush=True)
        sys.stdin.read()
    finally:
        cluster.shutdown()


if __name__ == "__main__":
    main()
