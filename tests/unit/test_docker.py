"""The images, as far as they can be judged without a container engine."""

from __future__ import annotations

import fnmatch
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCKER = ROOT / "docker"
DOCKERFILES = sorted(DOCKER.glob("Dockerfile.*"))
HADOLINT = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")


def _instructions(dockerfile: Path) -> list[tuple[str, str]]:
    """(instruction, arguments), comments left out and continued lines joined."""
    lines = [line for line in dockerfile.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line)]


def _copied(dockerfile: Path) -> list[str]:
    sources: list[str] = []
    for name, arguments in _instructions(dockerfile):
        if name == "COPY":
            *paths, _ = [part for part in arguments.split() if not part.startswith("--")]
            sources += paths
    return sources


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    text = (DOCKER / "compose.yaml").read_text()
    return dict(yaml.safe_load(text)["services"])


def test_there_are_two_images() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.gpu"]


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_hadolint_finds_nothing(dockerfile: Path) -> None:
    if HADOLINT is None:
        pytest.skip("hadolint is not installed")
    run = subprocess.run([HADOLINT, "--no-color", dockerfile], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_the_base_is_pinned(dockerfile: Path) -> None:
    for name, arguments in _instructions(dockerfile):
        if name == "FROM":
            image, _, tag = arguments.partition(":")
            assert image and re.search(r"\d", tag) and not re.search("latest|nightly", tag), arguments


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_it_does_not_run_as_root(dockerfile: Path) -> None:
    users = [arguments for name, arguments in _instructions(dockerfile) if name == "USER"]
    assert users and users[-1] == "${UID}"
    assert ("ARG", "UID=1000") in _instructions(dockerfile)


@pytest.mark.parametrize("dockerfile", DOCKERFILES, ids=lambda path: path.suffix)
def test_what_is_copied_is_there_and_in_the_context(dockerfile: Path) -> None:
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in _copied(dockerfile):
        assert (ROOT / source).exists(), source
        assert source == "." or any(fnmatch.fnmatch(source.split("/")[0], pattern) for pattern in kept), source


def test_the_context_has_no_secret_nor_what_runs_leave() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert not {"!outputs", "!.venv", "!.git", "!docker", "!wandb"} & set(lines)
    for line in lines:
        assert not line.startswith("!") or (ROOT / line[1:]).exists(), line
    ignored = subprocess.run(
        ["git", "check-ignore", "docker/ray_token"], cwd=ROOT, capture_output=True, check=False
    ).returncode
    assert ignored == 0, "docker/README.md writes the token there"


def test_the_cpu_image_runs_targets_of_the_makefile() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    text = (DOCKER / "Dockerfile.cpu").read_text()
    assert set(re.findall(r"make ([a-z]+) PYTHON|\"make\", \"([a-z]+)\"", text)) == {("setup", ""), ("", "demo")}
    assert {"setup", "demo"} <= targets
    # The layer that installs the stack has what the target depends on, and so the last COPY does not repeat it.
    needed = re.search(r"^\$\(INSTALLED\): (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert needed is not None
    copied = _copied(DOCKER / "Dockerfile.cpu")
    assert all(path in copied or path.split("/")[0] in copied for path in needed[1].split())


def test_the_gpu_image_has_a_supported_verl_and_moves_nothing_else() -> None:
    from drpo_verl.seams import SUPPORTED_VERL

    pinned = dict(re.findall(r"^([A-Za-z]+)==([\d.]+)", (ROOT / "requirements" / "gpu.txt").read_text(), re.MULTILINE))
    assert pinned["verl"] in SUPPORTED_VERL
    assert not {"torch", "vllm", "ray", "numpy"} & {name.lower() for name in pinned}
    for name, arguments in _instructions(DOCKER / "Dockerfile.gpu"):
        if name == "RUN" and "pip install" in arguments:
            assert "--constraint /tmp/image.txt" in arguments, arguments


def test_compose_is_valid() -> None:
    compose_spec = pytest.importorskip("compose_spec")
    text = (DOCKER / "compose.yaml").read_text()
    # It knows neither variables nor YAML's merge keys.
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", r"\2", text)
    text = re.sub(r"\$\{(\w+):\?[^}]*\}", "./token", text)
    parsed = compose_spec.PyCompose.from_yaml(yaml.safe_dump(yaml.safe_load(text)))
    assert set(parsed.service_names()) == {"head", "worker"}


def test_nothing_is_published_beyond_loopback(services: dict[str, Any]) -> None:
    published = [port for service in services.values() for port in service.get("ports", [])]
    assert published == ["127.0.0.1:8265:8265"]
    assert not any("network_mode" in service for service in services.values())


def test_the_cluster_wants_a_token_and_shares_a_folder(services: dict[str, Any]) -> None:
    text = (DOCKER / "compose.yaml").read_text()
    assert "${RAY_TOKEN_FILE:?" in text, "without a token nothing may start"
    for service in services.values():
        assert service["environment"]["RAY_AUTH_MODE"] == "token"
        assert service["environment"]["RAY_AUTH_TOKEN_PATH"] == "/run/secrets/ray_token"
        assert service["secrets"] == ["ray_token"] and service["volumes"] == ["shared:/shared"]
        assert service["cap_drop"] == ["ALL"]
    assert services["worker"]["depends_on"] == {"head": {"condition": "service_healthy"}}
