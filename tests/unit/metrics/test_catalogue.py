"""The catalogue against what is logged, and what is made of it against the catalogue."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from metrics_tables import with_tables
from omegaconf import OmegaConf

from drpo_verl.configuration import search_path
from drpo_verl.losses import OBJECTIVES, PrefixBudget, SequenceMask, TrustRegion, step_metrics, token_loss
from drpo_verl.metrics import names
from drpo_verl.metrics.alerts import ENTROPY, parse_alerts
from drpo_verl.metrics.bins import PROBABILITY_BINS
from drpo_verl.metrics.catalogue import SECTIONS
from drpo_verl.run_folder.steps import read_steps

ROOT = Path(__file__).parents[3]
REAL = ROOT / "tests" / "data" / "dppo_topk_tv.jsonl"

METRICS = [metric for section in SECTIONS for panel in section.panels for metric in panel.metrics]
DESCRIBED = [name for section in SECTIONS for name in section.names]
OURS = {name for name in DESCRIBED if name.startswith(names.NAMESPACES + names.OF_VERL)}

REGION = TrustRegion(0.1, 0.1, region_delta=0.1, prefix_budget=PrefixBudget(0.8, 0.02))


def _logged(method: str) -> set[str]:
    """What a run of a method logs in a step of two mini-batches, with a token of either sign of A in each bin of mu."""
    log_mu = torch.tensor(list(PROBABILITY_BINS.values())).mul(0.999).log().expand(2, -1)
    advantages = torch.tensor([[1.0], [-1.0]]).expand_as(log_mu)
    objective = OBJECTIVES[method]
    loss = token_loss(
        objective, REGION, log_mu - 0.05, log_mu, advantages, torch.ones_like(log_mu),
        log_anchor=log_mu - 0.01 if objective.recomputed_anchor else None,
        partition_divergence=torch.full_like(log_mu, 0.05) if objective.needs_top_k else None,
        partition_derivative=advantages, sequence_mask=SequenceMask(veto=1e-4),
    )  # fmt: skip
    first = loss.accumulators.to_host()
    metrics = step_metrics([first, replace(first, drift=True)], with_names_of_verl=True)
    return {*metrics, *([names.DELTA] if objective.adaptive else [])}


def test_all_that_is_logged_is_described_and_all_that_is_described_is_logged() -> None:
    logged = {method: _logged(method) for method in OBJECTIVES}
    for method, of_method in logged.items():
        assert of_method <= OURS, method
    assert set.union(*logged.values()) == OURS


def test_the_metrics_of_verl_are_those_of_a_real_run() -> None:
    *_, last = read_steps(REAL)
    logged = {*last.metrics, "val-core/drpo_verl/arithmetic/acc/mean@1", names.ENTROPY}  # where verl computes them
    logged |= {names.LOSS_SCALE, names.SKIPPED_UPDATES}  # in fp16 only
    of_verl = [metric for metric in METRICS if metric.name in set(DESCRIBED) - OURS]
    for metric in of_verl:
        assert any(re.match(metric.pattern or re.escape(metric.name), name) for name in logged), metric
    assert {metric.pattern for metric in of_verl if metric.pattern} == {"^val-core/.*", "^timing_s/.*"}


def test_each_metric_and_each_chart_is_there_once() -> None:
    keys = [panel.key for section in SECTIONS for panel in section.charts]
    for several in (DESCRIBED, keys, [section.key for section in SECTIONS]):
        assert [name for name, count in Counter(several).items() if count > 1] == []
    for metric in METRICS:
        assert re.match(r"[A-Z(]", metric.meaning), metric
        assert not metric.meaning.endswith(".") and not metric.bad.endswith("."), metric
    for section in SECTIONS:
        for panel in section.panels:
            assert len(panel.metrics) == 1 or all(metric.label for metric in panel.metrics), panel


def test_the_default_alerts_watch_what_is_described() -> None:
    alerts = parse_alerts(OmegaConf.load(search_path.config_dir() / "alerts" / "default.yaml"))
    assert {alert.metric for alert in alerts} <= {ENTROPY, *DESCRIBED}


def test_the_page_of_the_metrics_is_what_the_catalogue_makes_of_it() -> None:
    page = (ROOT / "docs" / "metrics.md").read_text()
    assert with_tables(page) == page, "run `make docs`"
    assert with_tables(page.replace("| `trust_region/delta` |", "| `trust_region/dleta` |")) == page
    with pytest.raises(ValueError, match="has to hold the two lines"):
        with_tables("# Metrics")
