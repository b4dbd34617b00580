"""Rules about how samples are made and scored: agent loops, reward managers, filtered groups, speculative decoding."""

from __future__ import annotations

from difflib import get_close_matches

from drpo_verl.check.method import objective_of
from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_number, is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import MODEL, ROLLOUT
from drpo_verl.preflight.files import is_our_reward

_AGENT_LOOPS = ("single_turn_agent", "tool_agent")
_REWARD_MANAGERS = ("naive", "dapo", "gdpo", "rate_limited", "remote")
_SPECULATIVE = f"{ROLLOUT}.engine_kwargs.vllm.speculative_config"


@rule
def agent_loop(run: RunConfig) -> Findings:
    """The agent loop is one of verl's or of the configuration, has workers, and keeps the statistics that are read."""
    name = f"{ROLLOUT}.agent.default_agent_loop"
    chosen = str(run.get(name, _AGENT_LOOPS[0]))
    brought = run.get(f"{ROLLOUT}.agent.agent_loop_config_path") or run.get(f"{MODEL}.external_lib")
    own = run.get(f"{ROLLOUT}.agent.agent_loop_manager_class")
    if chosen not in _AGENT_LOOPS and not brought and not own:
        near = get_close_matches(chosen, _AGENT_LOOPS, n=1) or [_AGENT_LOOPS[0]]
        advice = f"verl has {', '.join(_AGENT_LOOPS)}; one of your own is registered by agent_loop_config_path."
        yield run.error(name, "is not an agent loop of verl's: each sample fails.", f"{name}={near[0]}", advice=advice)
    for name in (f"{ROLLOUT}.agent.num_workers", "reward.num_workers"):
        if not is_whole(run.get(name, 8), 1):
            yield run.error(name, "is not a whole number of at least 1.", f"{name}=8")
    name = f"{ROLLOUT}.disable_log_stats"
    if run.get(f"{ROLLOUT}.prometheus.enable", False) and run.get(name, True):
        yield run.error(name, f"but {ROLLOUT}.prometheus.enable=True reads the statistics.", f"{name}=False")


@rule
def skipped_rollout(run: RunConfig) -> Findings:
    """Samples are made, and not read back from an earlier run, as verl does for debugging."""
    for kind in ("rollout", "rollout_tq", "async_rollout"):
        name = f"skip.{kind}.enable"
        if run.get(name, False):
            message = f"takes samples from {run.get(f'skip.{kind}.dump_dir')}, where there are some, and of whatever "
            yield run.warning(
                name, f"{message}policy: their behaviour policy is not the one of the run.", f"{name}=False"
            )


@rule
def reward_manager(run: RunConfig) -> Findings:
    """The reward manager is one of verl's, a penalty on length fits the response, and a reward model has cards."""
    name = "reward.reward_manager.name"
    chosen = str(run.get(name, "naive"))
    if run.get("reward.reward_manager.source", "register") == "register" and not run.get(f"{MODEL}.external_lib"):
        if chosen not in _REWARD_MANAGERS:
            near = get_close_matches(chosen, _REWARD_MANAGERS, n=1) or ["naive"]
            yield run.error(name, f"is none of {', '.join(_REWARD_MANAGERS)}.", f"{name}={near[0]}")
        elif chosen == "dapo" and run.get("reward.reward_kwargs.overlong_buffer_cfg.enable", False):
            yield from _overlong_buffer(run)
    if not run.get("reward.reward_model.enable", False):
        return
    name = "reward.reward_model.enable_resource_pool"
    if run.get(name, False):
        for key, least in (("nnodes", 1), ("n_gpus_per_node", 8)):
            setting = f"reward.reward_model.{key}"
            if not is_whole(run.get(setting, 0), 1):
                yield run.error(setting, f"has to be at least 1 with {name}=True.", f"{setting}={least}")
    elif run.standalone_rollout:
        message = "but the rollout of trainer_mode=separate_async never pauses to free its cards for a reward model."
        yield run.error(name, message, f"{name}=True reward.reward_model.nnodes=1")


def _overlong_buffer(run: RunConfig) -> Findings:
    name, longest = "reward.reward_kwargs.overlong_buffer_cfg.len", "reward.reward_kwargs.max_resp_len"
    length, limit = run.get(name), run.get(longest)
    if not is_whole(limit, 1):
        message = "is not a whole number of at least 1, and overlong_buffer_cfg.enable=True reads it."
        yield run.error(longest, message, run.override(longest, run.response_length))
    elif not is_number(length) or not 0 < length <= limit:
        yield run.error(name, f"is not above 0 and at most max_resp_len={limit}.", f"{name}={max(1, limit // 4)}")


@rule
def filter_groups(run: RunConfig) -> Findings:
    """Groups are filtered by a metric that the reward returns, with room for others, by verl's own buffer."""
    section = "algorithm.filter_groups"
    if not run.get(f"{section}.enable", False):
        return
    name = f"{section}.metric"
    metric = run.get(name)
    # A reward function that returns a number gives verl a reward, and the same number as acc.
    known = ("reward", "acc")
    if metric is None:
        yield run.error(name, "is not set, and groups are filtered by it.", f"{name}=reward")
    elif metric not in known and is_our_reward(run):
        message = "is not returned by drpo-verl's reward, and verl stops at the first group without it."
        yield run.error(name, message, f"{name}=reward")
    name = f"{section}.max_inflight_gen_batches"
    if run.trainer_mode == "sync" and not is_whole(run.get(name, 1), 1):
        yield run.error(name, "is not a whole number of at least 1.", f"{name}=1")
    name = f"{section}.max_num_gen_batches"
    if is_number(run.get(name, 0)) and run.get(name, 0) > 0:
        message = "is not read by verl's V1 trainer: it samples until enough groups are left, however long that is."
        advice = f"{section}.max_inflight_gen_batches bounds how many are sampled at once."
        yield run.warning(name, message, f"{name}=0", advice=advice)
    name = "reward.reward_model.enable_resource_pool"
    if run.get("reward.reward_model.enable", False) and not run.get(name, False):
        message = (
            f"but {section} needs the reward when groups are taken, and a reward model on the same cards comes later."
        )
        yield run.error(name, message, f"{section}.enable=False", f"{name}=True reward.reward_model.nnodes=1")


@rule
def speculative_decoding(run: RunConfig) -> Findings:
    """Speculative decoding leaves the samples and their log-probabilities those of the policy."""
    mtp = f"{MODEL}.mtp.enable_rollout"
    by_mtp = bool(run.get(f"{MODEL}.mtp.enable", False) and run.get(mtp, False))
    name = mtp if by_mtp else _SPECULATIVE
    if not by_mtp and run.get(_SPECULATIVE) is None:
        return
    off = f"{name}={'False' if by_mtp else 'null'}"
    if run.on_cpu:
        message = (
            "decodes speculatively, and vLLM's rejection sampler needs Triton: on a CPU the engine dies of the first "
        )
        yield run.error(name, f"{message}draft.", off)
        return
    method = f"{_SPECULATIVE}.rejection_sample_method"
    if run.get(method) == "synthetic":
        message = "accepts drafts at a given rate, whatever the policy says: the samples are not of the policy."
        yield run.error(method, message, off)
    elif objective_of(run) is not None or run.bypass or run.get(f"{ROLLOUT}.calculate_log_probs", False):
        message = "decodes speculatively: the log-probabilities that are taken for log mu come from vLLM's rejection "
        message += "sampler, and have not been compared with those of plain sampling here."
        advice = "Or compare mismatch/abs_prob_diff_max of a few steps with and without."
        yield run.warning(name, message, off, advice=advice)
