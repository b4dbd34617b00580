"""Real ranks over gloo on this machine: a process each, forked from one that has imported and composed what they need.

Usage, of that process: python ranks.py SCRIPT GROUPS, where GROUPS is a JSON list of groups of ranks (see ``Group``).
SCRIPT is a module with ``prepare``, which is called once with the cases of all groups, and ``main``, which each rank
calls with its group and what ``prepare`` has returned.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Group:
    """The ranks of one process group.

    Attributes:
        folder: where each rank writes ``<rank>.json``.
        ranks: how many.
        model: the folder of the policy.
        cases: what they train, by name, as ``prepare`` of the script takes it.
        settings: Hydra overrides of values, of every case.
    """

    folder: str
    ranks: int
    model: str
    cases: dict[str, Any]
    settings: list[str] = field(default_factory=list)


def run_ranks(script: Path, groups: Sequence[Group], *path: Path) -> list[list[Any]]:
    """Run the ranks of some groups, all at once.

    Args:
        script: see above.
        groups: of ranks.
        *path: folders of packages that go before the environment's.

    Returns:
        What each rank of each group has written.
    """
    process = subprocess.run(
        [sys.executable, __file__, str(script), json.dumps([asdict(group) for group in groups])],
        env=os.environ | {
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, [*map(str, path), os.environ.get("PYTHONPATH")])),
        },
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
    )  # fmt: skip
    assert process.returncode == 0, process.stdout[-4000:]
    return [
        [json.loads(Path(group.folder, f"{rank}.json").read_text()) for rank in range(group.ranks)] for group in groups
    ]


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _main(script: Path, groups: list[Group]) -> int:
    spec = importlib.util.spec_from_file_location(script.stem, script)
    assert spec is not None and spec.loader is not None
    sys.path.insert(0, str(script.parent))
    module = sys.modules[script.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    prepared = module.prepare({name: case for group in groups for name, case in group.cases.items()})
    children = []
    for group in groups:
        port = _free_port()
        for rank in range(group.ranks):
            if child := os.fork():
                children.append(child)
                continue
            os.environ |= {
                "RANK": str(rank), "WORLD_SIZE": str(group.ranks), "LOCAL_WORLD_SIZE": str(group.ranks),
                "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
                "DRPO_VERL_WORST_TOKENS": str(Path(group.folder, "worst_tokens.jsonl")),
            }  # fmt: skip
            try:
                module.main(group, prepared)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
                os._exit(1)
            sys.stdout.flush()
            os._exit(0)
    return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0 for child in children)


if __name__ == "__main__":
    sys.exit(_main(Path(sys.argv[1]), [Group(**group) for group in json.loads(sys.argv[2])]))
