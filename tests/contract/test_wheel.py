"""The wheel carries what an installation needs, and the source distribution builds the same wheel.

That verl and Hydra find an installed wheel is seen in test_own_method.py.
"""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

from wheels import build_wheel, run_module


def test_the_source_distribution_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    run_module("hatchling", "build", "--target", "sdist", "--directory", str(tmp_path))
    (sdist,) = tmp_path.glob("drpo_verl-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    for name in ("hydra_configs/method/drpo.yaml", "tests/conftest.py", "requirements/cpu.txt", "Makefile", "LICENSE"):
        assert name in names, name
    assert not [name for name in names if name.startswith(("outputs/", ".venv", ".git/"))]

    again = zipfile.ZipFile(build_wheel(sdist, tmp_path / "wheel"))
    first = zipfile.ZipFile(wheel)
    assert sorted(again.namelist()) == sorted(first.namelist())
    for name in first.namelist():
        assert again.read(name) == first.read(name), name


def test_the_wheel_carries_the_configuration_and_the_entry_points(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = archive.namelist()
    for name in ("hydra_configs/method/drpo.yaml", "py.typed", "report/page.html.jinja", "evidence.json"):
        assert f"drpo_verl/{name}" in names, name
    assert "hydra_plugins/drpo_verl_search_path.py" in names
    assert not any(name.startswith(("tests/", "hydra_configs/")) for name in names)
    (entry_points,) = (archive.read(name).decode() for name in names if name.endswith("/entry_points.txt"))
    for group in ("[verl.plugins]\ndrpo_verl = drpo_verl.plugin\n", "[vllm.general_plugins]\ndrpo_verl = "):
        assert group in entry_points
