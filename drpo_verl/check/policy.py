"""Rules about what is optimised: the method, its anchor, the distribution that was sampled from, the advantages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from drpo_verl.check.registry import rule, rule_for_any_loss
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.plugins import plugin_errors
from drpo_verl.configuration.run_config import ACTOR, CORRECTION, MODEL, ROLLOUT, Run, is_number

_SECTION = f"{ACTOR}.policy_loss"
_TARGET = "drpo_verl.adapters.config.TrustRegionLossConfig"


@rule_for_any_loss
def loss_mode(run: Run) -> Iterable[Finding]:
    """The loss mode is one that somebody has registered, and one of ours comes with its own configuration."""
    from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY

    name = f"{_SECTION}.loss_mode"
    # A library named there is imported by the workers only, and may register losses of its own.
    if run.loss_mode not in POLICY_LOSS_REGISTRY and not run.get(f"{MODEL}.external_lib"):
        known = ", ".join(sorted(POLICY_LOSS_REGISTRY))
        yield run.error(name, f"is not a loss mode; known: {known}.", "Choose one with +method=<name>.")
        for module, error in plugin_errors():  # of which one may have been meant to register it
            problem = f"is a plugin that verl could not load ({type(error).__name__}: {error})."
            yield Finding("error", module, None, problem, f"`python -c 'import {module}'` shows where the error is.")
    elif _ours(run) and run.get(f"{_SECTION}._target_") != _TARGET:
        yield run.error(
            name,
            "was set without its configuration.",
            f"Use +method={run.loss_mode} instead, which sets the loss mode, its thresholds and its anchor.",
        )


def _ours(run: Run) -> bool:
    import verl  # noqa: F401  and with it the packages that register objectives

    from drpo_verl.losses import OBJECTIVES

    return run.loss_mode in OBJECTIVES


@rule
def policy_loss(run: Run) -> Iterable[Finding]:
    """The method's own settings are complete, of the right kind, have an effect, and go with the anchor."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate
    from omegaconf import OmegaConf

    if run.get(f"{_SECTION}._target_") != _TARGET or not _ours(run):
        return
    try:
        instantiate(OmegaConf.select(run.config, _SECTION), _convert_="partial")
    except InstantiationException as error:
        from drpo_verl.adapters.config import SettingError

        cause = error.__cause__
        if isinstance(cause, SettingError):
            yield Finding("error", cause.setting, cause.value, cause.problem, cause.remedy)
        else:
            yield Finding("error", _SECTION, None, f"is refused: {cause or error}", "Choose a method with +method=.")


@dataclass(frozen=True)
class _Required:
    """A setting that some methods need at certain values.

    Args:
        allowed: those values, the one to set first.
        why: as a sentence.
        default: what a configuration without the setting means.
    """

    allowed: tuple[Any, ...]
    why: str
    default: Any = None

    @property
    def remedy(self) -> str:
        """What to do."""
        return f"Set it to {'null' if self.allowed[0] is None else self.allowed[0]}."


_TRAINER: Mapping[str, _Required] = {
    "trainer.use_v1": _Required((True,), "the legacy trainer replaces the loss mode in bypass mode.", default=True),
    "distillation.enabled": _Required(
        (False, None), "verl's distillation replaces the loss function that ours is wrapped around."
    ),
}
_SAMPLING: Mapping[str, _Required] = {
    **{
        f"{ROLLOUT}.{name}": _Required(
            (value, None), "the rollout would sample from another distribution than the policy."
        )
        for name, value in (("top_p", 1.0), ("top_k", -1), ("repetition_penalty", 1.0))
    },
    **{
        name: _Required(
            ("processed_logprobs", None),
            "log mu has to be that of the distribution that was sampled from, temperature included.",
        )
        for name in (f"{ROLLOUT}.logprobs_mode", f"{ROLLOUT}.engine_kwargs.vllm.logprobs_mode")
    },
}
_BYPASS: Mapping[str, _Required] = {
    f"{CORRECTION}.{name}": _Required((None,), f"verl's V1 trainer {does} nothing in bypass mode.")
    for name, does in (("rollout_rs", "rejects"), ("rollout_is", "weighs"))
}
_RECOMPUTED: Mapping[str, _Required] = {
    f"{CORRECTION}.rollout_is": _Required(
        (None,),
        "the loss truncates pi / mu itself (policy_loss.ratio_cap), and a second weight would count mu twice.",
    ),
}
_TOP_K: Mapping[str, _Required] = {
    f"{ROLLOUT}.name": _Required(("vllm",), "the Top-K log-probabilities come from vLLM."),
    f"{ACTOR}.strategy": _Required(
        ("fsdp", "fsdp2", "megatron"), "Top-K is gathered from logits as FSDP's and Megatron's engines hand them over."
    ),
    f"{MODEL}.use_fused_kernels": _Required(
        (False, None), "Top-K is gathered from the logits, which fused kernels never make."
    ),
    f"{ROLLOUT}.multi_turn.enable": _Required(
        (False, None), "the Top-K log-probabilities travel with single-turn samples only."
    ),
    f"{ROLLOUT}.agent.default_agent_loop": _Required(
        ("single_turn_agent", None), "the Top-K log-probabilities travel with single-turn samples only."
    ),
    f"{ACTOR}.fsdp_config.ulysses_sequence_parallel_size": _Required(
        (1, None), "Top-K is not gathered across sequence-parallel ranks."
    ),
    f"{ACTOR}.ulysses_sequence_parallel_size": _Required(
        (1, None), "Top-K is not gathered across sequence-parallel ranks."
    ),
    "trainer.v1.trainer_mode": _Required(
        ("sync", None),
        "an asynchronous trainer's interrupted samples lose their Top-K log-probabilities.",
    ),
    f"{ROLLOUT}.agent.agent_loop_config_path": _Required(
        (None,), "the Top-K log-probabilities travel with verl's own single-turn samples only."
    ),
    f"{ROLLOUT}.disaggregation.enabled": _Required(
        (False, None), "a disaggregated rollout does not return Top-K log-probabilities."
    ),
    **{
        f"{ACTOR}.{engine}.pad_to_length": _Required(
            (False, None, 0), "the rows of Top-K would not be those of the padded logits."
        )
        for engine in ("fsdp_config", "megatron")
    },
    f"{ACTOR}.megatron.dynamic_context_parallel": _Required(
        (False, None), "verl's Megatron engine refuses to hand over the logits with dynamic context parallelism."
    ),
}


def _refused(run: Run, requirements: Mapping[str, _Required]) -> Iterable[Finding]:
    for name, required in requirements.items():
        if run.get(name, required.default) not in required.allowed:
            yield run.error(name, f"but with loss_mode={run.loss_mode!r} {required.why}", required.remedy)


@rule
def trainer(run: Run) -> Iterable[Finding]:
    """verl's V1 trainer runs the method, and nothing replaces its loss."""
    if _ours(run):
        yield from _refused(run, _TRAINER)


@rule
def sampling_distribution(run: Run) -> Iterable[Finding]:
    """The rollout samples from the policy itself: top-p 1, top-k -1, no penalty, processed log-probabilities."""
    if _ours(run):
        yield from _refused(run, _SAMPLING)
        return
    for name, required in _SAMPLING.items():
        if run.get(name, required.default) not in required.allowed:
            yield run.warning(name, f"means that {required.why}", required.remedy)


@rule
def rollout_correction(run: Run) -> Iterable[Finding]:
    """No rejection or second importance weight is set where verl does nothing with it, or the loss has one already."""
    from drpo_verl.losses import OBJECTIVES

    if not _ours(run):
        return
    if run.bypass:
        yield from _refused(run, _BYPASS)
    if OBJECTIVES[run.loss_mode].recomputed_anchor:
        yield from _refused(run, _RECOMPUTED)


@rule
def top_k(run: Run) -> Iterable[Finding]:
    """A Top-K method has the engines, the agent loop and the trainer that its log-probabilities travel through."""
    from drpo_verl.losses import OBJECTIVES

    if not _ours(run) or not OBJECTIVES[run.loss_mode].needs_top_k:
        return
    yield from _refused(run, _TOP_K)
    name, asked = f"{ROLLOUT}.custom.drpo_verl.top_k", run.get(f"{_SECTION}.top_k")
    if run.get(name) != asked:
        yield run.error(
            name,
            f"but {_SECTION}.top_k={asked}: the rollout has to return what the loss expects.",
            f"+method={run.loss_mode} ties the two; leave rollout.custom alone.",
        )


@rule
def anchor(run: Run) -> Iterable[Finding]:
    """The behaviour anchor is there: rollout log-probabilities are returned, and used where the method means them."""
    returned = bool(run.get(f"{ROLLOUT}.calculate_log_probs", False))
    if not _ours(run):
        if run.bypass and not returned:
            yield run.error(
                f"{ROLLOUT}.calculate_log_probs",
                "but bypass_mode takes the rollout's log-probabilities for pi_old.",
                "Set it to True.",
            )
        elif run.loss_mode.startswith("dppo") and not run.bypass:
            yield run.warning(
                f"{CORRECTION}.bypass_mode",
                f"anchors loss_mode={run.loss_mode!r} on a recomputed pi_old, with which "
                "the DPPO paper sees it collapse.",
                "Set it to True.",
            )
        return
    for name, original in (
        ("bypass_mode", f"{CORRECTION}.bypass_mode"),
        ("rollout_log_probs", f"{ROLLOUT}.calculate_log_probs"),
    ):
        if bool(run.get(f"{_SECTION}.{name}", True)) != bool(run.get(original, False)):
            yield run.error(
                f"{_SECTION}.{name}",
                f"is a copy of {original}={run.get(original)}, which is what counts.",
                f"Leave it alone, and set {original}.",
            )


@rule
def temperature(run: Run) -> Iterable[Finding]:
    """The temperature is above 0, sampled with, and the same on both sides; validation has its own."""
    name = f"{ROLLOUT}.temperature"
    value = run.get(name, 1.0)
    if not is_number(value) or value <= 0:
        yield run.error(
            name,
            "is no temperature to sample at: both engines divide the logits by it.",
            "Set it to 1.0, as both papers do.",
        )
    elif value != 1:
        yield run.note(
            name,
            "is what both engines divide the logits by, as verl hands it to the actor too. Both papers sample "
            "at 1.0: the policy that is evaluated elsewhere at 1.0 is another one.",
        )
    if not run.get(f"{ROLLOUT}.do_sample", True):
        yield run.error(
            f"{ROLLOUT}.do_sample",
            "but training samples from the policy; verl's agent loop does not read it.",
            "Set it to True.",
        )
    for key in ("override_generation_config", "generation_config"):
        setting = f"{ROLLOUT}.engine_kwargs.vllm.{key}"
        if run.get(setting) is not None:
            yield run.warning(
                setting,
                "can change vLLM's sampling behind the rollout's settings, which are what the actor gets.",
                "Leave it out, and set actor_rollout_ref.rollout.{temperature,top_p,top_k}.",
            )
    validation = f"{ROLLOUT}.val_kwargs"
    if run.get(f"{validation}.do_sample", False) and run.number(f"{validation}.temperature", 1.0) <= 0:
        yield run.error(
            f"{validation}.temperature",
            "but val_kwargs.do_sample=True samples.",
            "Set a temperature above 0, or do_sample to False.",
        )
    if not run.get(f"{validation}.do_sample", False) and run.whole(f"{validation}.n", 1) > 1:
        yield run.warning(
            f"{validation}.n",
            "responses to each prompt are all the same one: val_kwargs.do_sample is False.",
            "Set do_sample to True and a temperature, or n to 1.",
        )


@rule
def router_replay(run: Run) -> Iterable[Finding]:
    """Router replay: R2 not with bypass mode, R3 with the rollout's routes; of experts, and not with FSDP."""
    name, routes = f"{run.engine}.router_replay.mode", f"{ROLLOUT}.enable_rollout_routing_replay"
    mode, recorded = run.get(name, "disabled"), bool(run.get(routes, False))
    if mode == "R2" and run.bypass:
        yield run.error(
            name,
            "but bypass_mode=True skips the forward pass that R2 records the routes in.",
            "Use R3 with actor_rollout_ref.rollout.enable_rollout_routing_replay=true, which replays the rollout's.",
        )
    if mode == "R3" and not recorded:
        yield run.error(routes, f"but {name}=R3 replays the routes of the rollout.", "Set it to True.")
    if recorded and mode != "R3":
        yield run.error(
            routes,
            f"returns the rollout's routes, and {name}={mode} does not replay them.",
            f"Set {name} to R3, or this to False."
            if not run.is_fsdp
            else "Set it to False: FSDP has no router replay.",
        )
    if mode != "disabled" and run.is_fsdp:
        yield run.error(
            name, "is not read by the FSDP engine.", "Use Megatron (model_engine=megatron), or leave it out."
        )
    if mode != "disabled" and run.architecture is not None and not run.architecture.experts:
        yield run.error(name, "but the model has no experts.", "Set it to disabled.")


@rule
def loss_scale(run: Run) -> Iterable[Finding]:
    """The constant of `seq-mean-token-sum-norm` is set, and is the response length."""
    name = f"{ACTOR}.loss_scale_factor"
    if run.get(f"{ACTOR}.loss_agg_mode", "token-mean") != "seq-mean-token-sum-norm":
        return
    value, length = run.get(name), run.response_length
    if value is None:
        yield run.error(
            name,
            "is not set: verl then divides by the padded width of each micro-batch, and the loss depends on how "
            "the batch was cut.",
            "Set it to data.max_response_length, as +method= does.",
        )
    elif not is_number(value) or value <= 0:
        yield run.error(name, "is no number above 0.", "Set it to data.max_response_length.")
    elif value != length:
        yield run.note(
            name,
            f"is not the response length ({length}): the gradient is {length / value:.3g} "
            "times what it is with it, which matters where it is clipped.",
        )


@rule
def thresholds(run: Run) -> Iterable[Finding]:
    """The method's thresholds are where they bind, and PPO's are not set for a method that does not read them."""
    if not _ours(run):
        return
    from drpo_verl.losses import OBJECTIVES

    row = OBJECTIVES[run.loss_mode]
    if row.verl_loss is None:
        yield from _deltas(run, row)
        yield from _ratio_cap(run)
        for each in ("clip_ratio", "clip_ratio_low", "clip_ratio_high"):
            if run.number(f"{ACTOR}.{each}", 0.2) != 0.2:
                yield run.warning(
                    f"{ACTOR}.{each}",
                    f"is PPO's, and is not read by loss_mode={run.loss_mode!r}.",
                    f"Set {_SECTION}.delta instead.",
                )
        return
    low, high = run.number(f"{ACTOR}.clip_ratio_low", 0.2), run.number(f"{ACTOR}.clip_ratio_high", 0.2)
    if low >= 1:
        yield run.warning(
            f"{ACTOR}.clip_ratio_low", "clips no ratio: none is below 0.", "Set it below 1; the papers have 0.2."
        )
    if low <= 0 or high <= 0:
        yield run.error(
            f"{ACTOR}.clip_ratio_{'low' if low <= 0 else 'high'}", "clips every token that moves.", "Set it above 0."
        )
    plain = run.number(f"{ACTOR}.clip_ratio", 0.2)
    if plain not in (low, high):
        yield run.warning(
            f"{ACTOR}.clip_ratio",
            f"has no effect beside clip_ratio_low={low} and clip_ratio_high={high}.",
            "Set those.",
        )


def _deltas(run: Run, row: Any) -> Iterable[Finding]:
    from drpo_verl.losses.geometry import PROBABILITY

    bounded = row.geometry is PROBABILITY or run.loss_mode.endswith(("_tv", "_topk"))
    for key in ("delta", "delta_low", "delta_high", "region_delta"):
        name = f"{_SECTION}.{key}"
        value = run.get(name)
        if not is_number(value) or value <= 0 or run.get(f"{_SECTION}.penalty") not in (None, "l2"):
            continue
        if bounded and value >= 1:
            if row.enforcement.attenuates and key != "region_delta":
                yield run.note(
                    name,
                    f"is never reached, as no probability moves by more than 1: the weight stays within "
                    f"[{1 - 1 / value:.2f}, {1 + 1 / value:.2f}], a mild regulariser. Below 1 the boundary binds.",
                )
            else:
                yield run.warning(
                    name,
                    "is never reached, as no probability moves by 1: no token is masked.",
                    "Set it below 1; the DPPO paper has 0.1 to 0.2.",
                )
        elif value < 1e-4:
            yield run.warning(
                name,
                "is below the mismatch of two engines in bf16 (1e-3): it acts on their noise.",
                "Measure that with `drpo-verl probe`, and set it above.",
            )


def _ratio_cap(run: Run) -> Iterable[Finding]:
    name = f"{_SECTION}.ratio_cap"
    cap = run.get(name)
    if is_number(cap) and 0 < cap < 1:
        yield run.warning(
            name,
            "is below 1, and so shrinks the gradient of tokens on which the two policies agree.",
            "Set it to at least 1: CISPO has 1, PG-TIS 3, DPPO 5.",
        )
    elif is_number(cap) and cap > 1000:
        yield run.note(name, "caps next to nothing. The DPPO paper has 5, or none (null).")


@rule
def kl(run: Run) -> Iterable[Finding]:
    """A KL penalty has a positive coefficient, a kind that verl knows, and a reference; the papers have none."""
    used = bool(run.get(f"{ACTOR}.use_kl_loss", False))
    name = f"{ACTOR}.kl_loss_coef"
    if used:
        coefficient = run.number(name, 0.001)
        if coefficient < 0:
            yield run.error(name, "rewards the distance from the reference.", "Set it to a number above 0.")
        elif coefficient == 0:
            yield run.warning(
                name, "pays for a reference model and uses nothing of it.", f"Set {ACTOR}.use_kl_loss=false."
            )
        kind = str(run.get(f"{ACTOR}.kl_loss_type", "low_var_kl"))
        known = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
        if kind.removesuffix("+") not in known:
            yield run.error(f"{ACTOR}.kl_loss_type", f"is none of {', '.join(known)}.", "Choose one.")
    if run.get("algorithm.use_kl_in_reward", False) and run.number("algorithm.kl_ctrl.kl_coef", 0.001) < 0:
        yield run.error("algorithm.kl_ctrl.kl_coef", "rewards the distance from the reference.", "Set it above 0.")
    if run.needs_reference and _ours(run):
        setting = f"{ACTOR}.use_kl_loss" if used else "algorithm.use_kl_in_reward"
        yield run.note(
            setting, "adds a pull towards the reference model, and its memory and forward pass; neither paper has one."
        )


@rule
def entropy(run: Run) -> Iterable[Finding]:
    """The entropy bonus is none, as in the papers, or at least no penalty and no main objective."""
    name = f"{ACTOR}.entropy_coeff"
    value = run.number(name, 0)
    if value < 0:
        yield run.warning(name, "penalises entropy: the policy collapses.", "Set it to 0.")
    elif value > 0.1:
        yield run.warning(name, "outweighs the reward: the policy dissolves.", "Set it to 0, or about 0.001.")
    elif value > 0:
        yield run.note(name, "adds an entropy bonus; neither paper has one.")


@rule
def advantages(run: Run) -> Iterable[Finding]:
    """verl has the estimator; a group is of several, centred, not divided by its deviation, and needs no critic."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    estimator = str(run.get("algorithm.adv_estimator", "gae"))
    if estimator not in ADV_ESTIMATOR_REGISTRY and not run.get(f"{MODEL}.external_lib"):
        known = ", ".join(sorted(ADV_ESTIMATOR_REGISTRY))
        yield run.error(
            "algorithm.adv_estimator", f"is not one of verl's: {known}.", "Set it to grpo, as both papers do."
        )
        return
    if run.responses == 1 and estimator.startswith(("grpo", "rloo", "gdpo", "opo")):
        yield run.warning(
            f"{ROLLOUT}.n",
            f"makes groups of one for adv_estimator={estimator}, which has nothing to centre on: the "
            "advantage is the raw reward, and a wrong response teaches nothing.",
            "Set it to 8 or more.",
        )
    if not _ours(run):
        return
    if estimator == "gae":
        yield run.warning(
            "algorithm.adv_estimator", "trains a critic; both papers centre the rewards of a group.", "Set it to grpo."
        )
    if estimator.startswith("grpo") and run.get("algorithm.norm_adv_by_std_in_grpo", True):
        yield run.note(
            "algorithm.norm_adv_by_std_in_grpo",
            "divides the advantages by their standard deviation; neither paper does.",
        )


@rule
def learning_rate(run: Run) -> Iterable[Finding]:
    """The learning rate is one at which a pretrained model survives, and its gradient clipping the one that is read."""
    name = f"{ACTOR}.optim.lr"
    rate = run.number(name, 1e-6)
    large = run.architecture is not None and run.architecture.parameters.total > 1e8 and not run.lora_rank
    highest = 1e-5 if large else 1e-3
    if rate <= 0:
        yield run.error(name, "learns nothing.", "Set it to 1e-6, the papers'.")
    elif rate > 10 * highest:
        yield run.error(
            name,
            "destroys the policy within a few steps"
            + (" (Megatron's default in verl is 1e-3)." if run.is_megatron else "."),
            "Set it to 1e-6, the papers'.",
        )
    elif rate > highest:
        yield run.warning(
            name, "is far above what is used for post-training.", "The papers have 1e-6, and 1e-5 with LoRA."
        )
    elif rate < 1e-9:
        yield run.warning(name, "changes next to nothing.", "The papers have 1e-6.")
    actors, read = run.get(f"{ACTOR}.grad_clip"), run.number(f"{ACTOR}.optim.clip_grad", 1.0)
    if is_number(actors) and actors not in (1.0, read):
        yield run.warning(
            f"{ACTOR}.grad_clip",
            f"is not read by verl's engines, which clip at {ACTOR}.optim.clip_grad={read}.",
            f"Set {ACTOR}.optim.clip_grad.",
        )
    if read <= 0:
        yield run.error(f"{ACTOR}.optim.clip_grad", "clips every gradient to nothing.", "Set it to 1.0.")
    total = run.get("trainer.total_training_steps")
    warmup = run.number(f"{ACTOR}.optim.lr_warmup_steps", -1)
    if is_number(total) and warmup >= total * run.sync_step:
        yield run.warning(
            f"{ACTOR}.optim.lr_warmup_steps", f"is not over when the run is ({total} steps).", "Set it far below."
        )
