"""The tables of the documentation against what they are about."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import torch

from drpo_verl.configuration import search_path
from drpo_verl.losses import OBJECTIVES, TokenStatistics, TrustRegion, step_metrics, token_loss
from drpo_verl.metrics.bins import PROBABILITY_BINS

ROOT = Path(__file__).parents[2]


def _first_cells(page: str) -> Iterator[list[str]]:
    """The code in the first cell of each row of its tables."""
    for line in (ROOT / "docs" / page).read_text().splitlines():
        if line.startswith("| `"):
            yield re.findall(r"`([^`]+)`", line.split("|")[1])


def _documented_metrics() -> set[str]:
    names = set()
    for first, *others in _first_cells("metrics.md"):
        names.add(first)
        for other in others:
            if other.startswith("..._"):
                names.add(first.replace("positive", other.strip("._")))
            elif other.startswith("_"):
                names.add(first.rpartition("_")[0] + other)
            else:
                names.add("/".join([*first.split("/")[:-1], other]))
    return names


def test_every_metric_is_in_the_table() -> None:
    log_mu = -torch.rand(2, 8, generator=torch.Generator().manual_seed(0))
    parts = []
    for drift in (False, True):
        accumulators = token_loss(
            OBJECTIVES["dppo_topk_tv"], TrustRegion(0.1, 0.1), log_mu - 0.05, log_mu, torch.tensor([[1.0], [-1.0]])
            .expand(2, 8), torch.ones(2, 8), partition_divergence=torch.full((2, 8), 0.05),
        ).accumulators  # fmt: skip
        statistics = accumulators.to_host()
        parts.append(TokenStatistics(**{**vars(statistics), "drift": drift}))
    documented = _documented_metrics()
    series = ("mismatch/", "inference_mismatch/", "policy_drift/")
    bins = "|".join(PROBABILITY_BINS)
    found = set()
    for name in step_metrics(parts):
        bare = name.partition("/")[2] if name.startswith(series) else name
        by_bin = re.sub(rf"^\w+_by_prob/(share|abs_prob_diff)_(?:{bins})", r"\1_<bin>", name)
        assert {bare, name, by_bin} & documented, name
        found |= {bare, name, by_bin}
    # Which is of runs with a controller.
    assert documented - found - set(series) == {"trust_region/delta"}


def test_every_method_is_in_the_tables_with_its_source() -> None:
    methods = {path.stem for path in (search_path.config_dir() / "method").glob("*.yaml")}
    assert methods <= {name for cell in _first_cells("methods.md") for name in cell}
    readme = {name for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("| `")
              for name in re.findall(r"`([^`]+)`", line.split("|")[1])}  # fmt: skip
    assert methods <= readme
    page = (ROOT / "docs" / "methods.md").read_text()
    for objective in OBJECTIVES.values():
        for paper in re.findall(r"arXiv [\d.]+\d", objective.source):
            assert paper in page, objective.source
