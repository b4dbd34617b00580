"""Rules about what is optimised: advantages, the scale of the loss, KL and entropy terms, the learning rate."""

from __future__ import annotations

from difflib import get_close_matches

from drpo_verl.check.method import objective_of
from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.numbers import is_number
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ACTOR, MODEL, ROLLOUT

_KL_KINDS = ("kl", "k1", "abs", "mse", "k2", "low_var_kl", "k3")
_NOT_FED = {
    "remax": "the rewards of greedy responses",
    "gdpo": "the parts of the reward",
    "optimal_token_baseline": "the sum of the squared probabilities",
    "tir_optimal_token_baseline": "the sum of the squared probabilities",
}
"""Estimators whose inputs are none of the fields that ``PPOTrainer._compute_advantage`` fetches."""
_PAPERS_HAVE = "The papers have 1e-6, and 1e-5 with LoRA."


@rule
def loss_scale(run: RunConfig) -> Findings:
    """The constant of `seq-mean-token-sum-norm` is set, and is the response length."""
    name = f"{ACTOR}.loss_scale_factor"
    if run.get(f"{ACTOR}.loss_agg_mode", "token-mean") != "seq-mean-token-sum-norm":
        return
    value, length = run.get(name), run.response_length
    remedy, advice = f"{name}=${{data.max_response_length}}", "+method= sets it so."
    if value is None:
        message = "is not set: verl then divides by the padded width of each micro-batch, on which the loss depends."
        yield run.error(name, message, remedy, advice=advice)
    elif not is_number(value) or value <= 0:
        yield run.error(name, "is no number above 0.", remedy, advice=advice)
    elif value != length:
        message = f"is not the response length ({length}): the gradient is {length / value:.3g} times what it is with "
        yield run.note(name, message + "it, which matters where it is clipped.")


@rule
def kl(run: RunConfig) -> Findings:
    """A KL penalty has a positive coefficient, a kind that verl knows, and a reference; the papers have none."""
    use_loss, in_reward = f"{ACTOR}.use_kl_loss", "algorithm.use_kl_in_reward"
    used = bool(run.get(use_loss, False))
    if used:
        name = f"{ACTOR}.kl_loss_coef"
        coefficient = run.number(name)
        if coefficient < 0:
            yield run.error(name, "rewards the distance from the reference.", f"{name}={-coefficient}")
        elif coefficient == 0:
            yield run.warning(name, "pays for a reference model and uses nothing of it.", f"{use_loss}=False")
        name = f"{ACTOR}.kl_loss_type"
        if str(run.get(name, "low_var_kl")).removesuffix("+") not in _KL_KINDS:
            yield run.error(name, f"is none of {', '.join(_KL_KINDS)}.", f"{name}=low_var_kl")
    if run.get(in_reward, False):
        yield from _kl_in_reward(run)
    if run.needs_reference and objective_of(run) is not None:
        message = "adds a pull towards the reference model, and its memory and forward pass; neither paper has one."
        yield run.note(use_loss if used else in_reward, message)


def _kl_in_reward(run: RunConfig) -> Findings:
    name = "algorithm.kl_ctrl.kl_coef"
    if run.number(name) < 0:
        yield run.error(name, "rewards the distance from the reference.", f"{name}={-run.number(name)}")
    name, kind = "algorithm.kl_penalty", str(run.get("algorithm.kl_penalty", "kl"))
    if kind.removesuffix("+") not in _KL_KINDS:
        yield run.error(name, f"is none of {', '.join(_KL_KINDS)}.", f"{name}=kl")
    name, horizon = "algorithm.kl_ctrl.type", "algorithm.kl_ctrl.horizon"
    if run.get(name, "fixed") not in ("fixed", "adaptive"):
        yield run.error(name, "is neither fixed nor adaptive.", f"{name}=fixed")
    elif run.get(name) == "adaptive" and not (is_number(run.get(horizon, 0)) and run.get(horizon, 0) > 0):
        yield run.error(horizon, f"is not a number of samples above 0, and {name}=adaptive.", f"{horizon}=10000")


@rule
def entropy(run: RunConfig) -> Findings:
    """The entropy bonus is none, as in the papers, or at least no penalty and no main objective."""
    name = f"{ACTOR}.entropy_coeff"
    value = run.number(name)
    if value < 0:
        yield run.warning(name, "penalises entropy: the policy collapses.", f"{name}=0")
    elif value > 0.1:
        message = "outweighs the reward: the policy dissolves."
        yield run.warning(name, message, f"{name}=0", advice="Or to about 0.001.")
    elif value > 0:
        yield run.note(name, "adds an entropy bonus; neither paper has one.")


@rule
def advantages(run: RunConfig) -> Findings:
    """verl has the estimator; a group is of several, centred, not divided by its deviation, and needs no critic."""
    from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

    name = "algorithm.adv_estimator"
    estimator = str(run.get(name, "gae"))
    if estimator not in ADV_ESTIMATOR_REGISTRY and not run.get(f"{MODEL}.external_lib"):
        known = sorted(str(each) for each in ADV_ESTIMATOR_REGISTRY)
        near = get_close_matches(estimator, known, n=1) or ["grpo"]
        yield run.error(name, f"is not one of verl's: {', '.join(known)}.", f"{name}={near[0]}")
        return
    if estimator in _NOT_FED and run.get("trainer.use_v1", True):
        message = f"needs {_NOT_FED[estimator]}, which verl's V1 trainer does not hand to it: the first step fails."
        yield run.error(name, message, f"{name}=grpo")
        return
    if run.responses == 1 and estimator == "grpo_passk":
        message = f"makes groups of one, and adv_estimator={estimator} refuses less than two."
        yield run.error(f"{ROLLOUT}.n", message, f"{ROLLOUT}.n=8", advice="Or to 2 or more.")
    elif run.responses == 1 and estimator.startswith(("grpo", "rloo", "gdpo", "opo")):
        message = f"makes groups of one for adv_estimator={estimator}, which has nothing to centre on: the advantage "
        message += "is the raw reward, and a wrong response teaches nothing."
        yield run.warning(f"{ROLLOUT}.n", message, f"{ROLLOUT}.n=8", advice="Or to more.")
    if objective_of(run) is None:
        return
    if estimator == "gae":
        yield run.warning(name, "trains a critic; both papers centre the rewards of a group.", f"{name}=grpo")
    name = "algorithm.norm_adv_by_std_in_grpo"
    if estimator.startswith("grpo") and run.get(name, True):
        yield run.note(name, "divides the advantages by their standard deviation; neither paper does.")


@rule
def learning_rate(run: RunConfig) -> Findings:
    """The learning rate is one at which a pretrained model survives, and its gradient clipping the one that is read."""
    name = f"{ACTOR}.optim.lr"
    rate = run.number(name)
    large = run.architecture is not None and run.architecture.parameters.total > 1e8 and not run.lora_rank
    highest = 1e-5 if large else 1e-3
    if rate <= 0:
        yield run.error(name, "learns nothing.", f"{name}=1e-6", advice=_PAPERS_HAVE)
    elif rate > 10 * highest:
        why = " (Megatron's default in verl is 1e-3)" if run.is_megatron else ""
        yield run.error(name, f"destroys the policy within a few steps{why}.", f"{name}=1e-6", advice=_PAPERS_HAVE)
    elif rate > highest:
        yield run.warning(name, "is far above what is used for post-training.", f"{name}=1e-6", advice=_PAPERS_HAVE)
    elif rate < 1e-9:
        yield run.warning(name, "changes next to nothing.", f"{name}=1e-6", advice=_PAPERS_HAVE)
    name, unread = f"{ACTOR}.optim.clip_grad", f"{ACTOR}.grad_clip"
    limit, ignored = run.number(name), run.get(unread)
    if is_number(ignored) and ignored not in (1.0, limit):
        message = f"is not read by verl's engines, which clip at {name}={limit}."
        yield run.warning(unread, message, f"{name}={ignored}")
    if run.has(name) and run.get(name) is None:
        yield run.error(name, "is not set, which verl's engines assert in the first update.", f"{name}=1.0")
    elif limit <= 0:
        yield run.error(name, "clips every gradient to nothing.", f"{name}=1.0")
    name, total = f"{ACTOR}.optim.lr_warmup_steps", run.get("trainer.total_training_steps")
    if is_number(total) and run.number(name) >= total * run.sync_step:
        advice = "Or to a small part of them."
        yield run.warning(name, f"is not over when the run is ({total} steps).", f"{name}=0", advice=advice)
