"""Which metrics keep the prefix that verl's driver gives to all that an actor returns, and which updates count."""

from __future__ import annotations

from drpo_verl.adapters.driver_metrics import keep_namespaces, keep_the_last


def _rename(data: dict[str, object], prefix: str = "") -> dict[str, object]:
    return {f"{prefix}{name}": value for name, value in data.items()}


def test_names_of_verl_are_not_prefixed_beside_ours() -> None:
    ours: dict[str, object] = {
        "mismatch/kl": 2,
        "trust_region/weight_min": 3,
        "rollout_corr/kl": 4,
        "training/rollout_probs_diff_max": 5,
    }
    assert keep_namespaces(_rename)({"loss": 1, **ours}, "actor/") == {"actor/loss": 1, **ours}


def test_what_verl_logs_in_runs_of_its_own_losses_keeps_its_prefix() -> None:
    assert keep_namespaces(_rename)({"rollout_corr/kl": 1}, "actor/") == {"actor/rollout_corr/kl": 1}


def test_of_a_steps_updates_the_last_ones_metrics_count() -> None:
    def by_name(self: object, metric_name: str) -> str:
        return "max" if "max" in metric_name else "weighted_avg"

    kept = keep_the_last(by_name)
    assert kept(None, "policy_drift/abs_prob_diff_p99") == kept(None, "mismatch/ratio_max") == "last"
    assert kept(None, "actor/grad_norm") == "weighted_avg" and kept(None, "response_length/max") == "max"
