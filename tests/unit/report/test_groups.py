"""Which runs are one line, and what tells the others apart."""

from __future__ import annotations

import pytest

from drpo_verl.report.groups import config_differences, curve, group_runs, name_runs, not_finite_steps
from drpo_verl.report.load import load_runs

DELTA = "actor_rollout_ref.actor.policy_loss.delta"


def _groups(paths, by="method"):
    return {group.label: [run.name for run in group.runs] for group in group_runs(load_runs(paths), by)}


def test_runs_that_differ_in_nothing_but_seeds_are_one_group(make_run) -> None:
    paths = [
        make_run("a", **{"data.seed": 1, "run.stall_seconds": 9}), make_run("tv", "dppo_binary_tv"),
        make_run("b", **{"data.seed": 2, "actor_rollout_ref.actor.data_loader_seed": 7}),
        make_run("old", complete=False),
    ]  # fmt: skip
    assert _groups(paths) == {"drpo": ["a", "b"], "dppo_binary_tv": ["tv"], "old": ["old"]}


def test_methods_of_one_loss_mode_are_told_apart(make_run) -> None:
    runs = load_runs([make_run("a", "cispo"), make_run("b", "pg_tis")])
    assert [group.label for group in group_runs(runs)] == ["cispo", "pg_tis"]
    (difference,) = config_differences(runs)
    assert (difference.key, [value for value, _ in difference.values]) == ("run.method", ["cispo", "pg_tis"])


def test_variants_of_a_method_are_named_by_what_differs(make_run) -> None:
    paths = [
        make_run("a", **{DELTA: 0.1}),
        make_run("b", **{DELTA: 0.2}),
        make_run("c", **{DELTA: 0.1, "data.seed": 2}),
    ]
    assert _groups(paths) == {"drpo, delta=0.1": ["a", "c"], "drpo, delta=0.2": ["b"]}
    assert _groups([paths[0], make_run("d", **{"x.one": 1, "x.two": 2, "x.three": 3})]) == {
        "drpo #1": ["a"],
        "drpo #2": ["d"],
    }


def test_a_setting_that_follows_from_another_is_named_where_that_one_does_not_tell(make_run) -> None:
    derived = {"rollout.n": 4, "ref.n": "${rollout.n}", "ref.log": "${run.dir}/log"}
    paths = [make_run("a", **derived), make_run("b", **{**derived, "rollout.n": 8})]
    assert _groups(paths) == {"drpo, n=4": ["a"], "drpo, n=8": ["b"]}
    assert [difference.key for difference in config_differences(load_runs(paths))] == ["rollout.n"]
    # An experiment's threshold, the method's default, and the same given by hand.
    reads = {DELTA: "${oc.select:paper.tv_delta,0.2}"}
    paths = [
        make_run("experiment", **reads, **{"paper.tv_delta": 0.15, "paper.kl_delta": 0.05}),
        make_run("default", **reads), make_run("given", **{DELTA: 0.2, "data.seed": 2}),
    ]  # fmt: skip
    assert _groups(paths) == {"drpo, delta=0.15": ["experiment"], "drpo, delta=0.2": ["default", "given"]}


def test_grouping_by_a_setting(make_run) -> None:
    paths = [make_run("a", **{DELTA: 0.1}), make_run("b", **{DELTA: 0.2}), make_run("c", "spo", **{DELTA: 0.1})]
    assert _groups(paths, DELTA) == {"delta=0.1": ["a", "c"], "delta=0.2": ["b"]}
    with pytest.raises(ValueError, match=rf"--group-by=deltas is a setting of none.*{DELTA}"):
        _groups(paths, "deltas")


def test_a_band_reaches_from_the_smallest_to_the_largest(make_run) -> None:
    (group,) = group_runs(load_runs([make_run("a"), make_run("b", scale=2.0, **{"data.seed": 2})]))
    (first, *_) = curve(group, "critic/score/mean")
    assert (first.step, first.count) == (1, 2)
    assert first.low == pytest.approx(0.3541667) and first.high == pytest.approx(2 * first.low)
    assert first.mean == pytest.approx(1.5 * first.low)
    assert curve(group, "critic/score/mean", scale=-1.0)[0].mean == -first.mean


def test_settings_that_differ(make_run) -> None:
    runs = load_runs([make_run("a", **{DELTA: 0.1}), make_run("b", **{DELTA: 0.1}), make_run("c"),
                      make_run("old", complete=False)])  # fmt: skip
    (difference,) = config_differences(runs)  # neither the runs' names nor what no run but one is known of
    assert difference.key == DELTA
    assert [(value, list(names)) for value, names in difference.values] == [("(not set)", ["c"]), ("0.1", ["a", "b"])]
    groups = group_runs(runs)
    assert name_runs(["a", "b"], groups) == "drpo, delta=0.1 (2 runs)"
    assert name_runs(["a", "c"], groups) == "a, c"
    assert name_runs(["a", "b", "c", "old"], groups) == "all runs"


def test_a_gap_is_where_no_run_of_the_group_has_a_number(make_run) -> None:
    paths = [
        make_run("a", metrics={1: {"m": 1.0}, 2: {"m": None}, 3: {"m": None}, 4: {"m": 1.0}}),
        make_run("b", metrics={1: {"m": 1.0}, 2: {"m": 3.0}, 3: {}, 4: {"m": None}}, **{"data.seed": 2}),
    ]
    (group,) = group_runs(load_runs(paths))
    assert not_finite_steps(group, "m") == [3] and not_finite_steps(group, "n") == []
    assert [(point.step, point.mean, point.count) for point in curve(group, "m")] == [
        (1, 1.0, 2),
        (2, 3.0, 1),
        (4, 1.0, 1),
    ]
