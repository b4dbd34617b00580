"""Each wrong configuration is one or two overrides away from a valid run, and is found with its name and its remedy."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path

import models
import pytest
from configurations import (
    ACTOR,
    ASYNC,
    CPU,
    DENSE,
    EXPERTS,
    MEGATRON,
    MODEL,
    PARTS,
    ROLLOUT,
    architecture,
    composed,
    findings,
    findings_after,
    findings_once,
)
from omegaconf import OmegaConf, open_dict

from drpo_verl import preflight
from drpo_verl.check.rule import Rule, evaluate
from drpo_verl.configuration.compose import compose_run
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.numbers import NUMBERS
from drpo_verl.configuration.run_config import RunConfig

LOSS = f"{ACTOR}.policy_loss"
CORRECTION = "algorithm.rollout_correction"


@pytest.mark.parametrize("base", [CPU, DENSE, PARTS, EXPERTS, ASYNC], ids=["cpu", "dense", "parts", "experts", "async"])
def test_the_valid_ones_are_valid(base: tuple[str, ...]) -> None:
    unexpected = [each for each in findings(base) if each.level != "note" and each.rule != "data_files"]
    assert not unexpected, [str(each) for each in unexpected]


WRONG = [
    # Batches.
    (CPU, [f"{ROLLOUT}.n=0"], "error", "numbers", r"rollout\.n=0 is not a whole number of at least 1"),
    (CPU, ["data.train_batch_size=2.5"], "error", "numbers", r"train_batch_size=2\.5 is not a whole number"),
    (PARTS, ["data.train_batch_size=63", f"{ROLLOUT}.n=1"],
     "error", "rollout_batch", r"63 samples.*8 ranks.*multiple of 8"),
    (DENSE, [f"{ACTOR}.ppo_mini_batch_size=128"],
     "error", "mini_batch", r"=128 is more than the 64 prompts of a rollout"),
    (DENSE, [f"{ACTOR}.ppo_mini_batch_size=24"],
     "warning", "mini_batch", r"does not divide the 64 prompts.*8 empty.*67%"),
    (DENSE, [f"{ACTOR}.ppo_mini_batch_size=1", f"{ROLLOUT}.n=4"],
     "error", "mini_batch", r"4 samples, which 8 data-parallel.*multiple of 2"),
    (ASYNC, ["data.train_batch_size=128"],
     "error", "mini_batch", r"=128 is not parameter_sync_step=4 x ppo_mini_batch_size=16.*Set it to 64"),
    (PARTS, [f"{ACTOR}.ppo_micro_batch_size_per_gpu=3"],
     "error", "micro_batch", r"=3 does not divide a rank's 16 samples.*Set it to 2"),
    (PARTS, [f"{ACTOR}.ppo_micro_batch_size_per_gpu=null"],
     "error", "micro_batch", r"per_gpu is not a whole number.*divisor of 16"),
    (PARTS, [f"{ACTOR}.ppo_micro_batch_size_per_gpu=null", f"{ACTOR}.ppo_micro_batch_size=16"],
     "error", "micro_batch", r"do not read the deprecated"),
    (DENSE, [f"{ACTOR}.ppo_max_token_len_per_gpu=8192"],
     "error", "micro_batch", r"=8192 has no room for a sequence of 10240.*at least 10240"),
    (PARTS, [f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=null"],
     "error", "log_prob_micro_batch", r"log_prob_micro_batch_size_per_gpu is not a whole"),
    (PARTS, ["method=minirl", f"{CORRECTION}.bypass_mode=false", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=48"],
     "error", "log_prob_micro_batch", r"=48 does not divide a rank's 64.*Set it to 32"),
    (DENSE, [f"{ROLLOUT}.log_prob_use_dynamic_bsz=false"],
     "error", "log_prob_micro_batch", r"dynamic_bsz=False, but.*use_dynamic_bsz=True"),
    (PARTS, [f"{ACTOR}.use_kl_loss=true"],
     "error", "log_prob_micro_batch", r"ref\.log_prob_micro_batch_size_per_gpu is not a whole"),
    # The seed.
    (CPU, ["run.seed=-1"], "error", "seed", r"run\.seed=-1 is no seed.*0 to 2147483647"),
    (CPU, ["run.seed=2147483648"], "error", "seed", r"=2147483648 is no seed"),
    (CPU, ["run.seed=0.5"], "error", "seed", r"=0\.5 is no seed"),
    (DENSE, ["run.seed=1", f"{ROLLOUT}.name=sglang"], "error", "seed", r"='sglang' does not take the seed of a sample"),
    (DENSE, [f"{ROLLOUT}.full_determinism=true"], "error", "seed", r"starts each request of a replica from one seed"),
    (ASYNC, ["run.seed=1"], "warning", "repeatable", r"separate_async.*run\.seed=1.*which weights.*not repeatable"),
    (DENSE, ["run.seed=1"], "note", "repeatable", r"VLLM_BATCH_INVARIANT while run\.seed=1: log-probabilities depend"),
    (DENSE, ["run.seed=1", "algorithm.filter_groups.enable=true"],
     "warning", "repeatable", r"enable=True.*how many prompts take the place of others"),
    (DENSE, ["run.seed=1", f"{ROLLOUT}.agent.agent_loop_manager_class=mine.Manager"],
     "warning", "repeatable", r"='mine\.Manager' may not give its samples"),
    (DENSE, ["data.gen_batch_size=192"],
     "error", "generation_batch", r"=192 does not divide the 64 prompts.*Set it to 64, or set it to null"),
    (DENSE, ["data.gen_batch_size=24"], "error", "generation_batch", r"=24 does not divide the 64.*Set it to 16"),
    (DENSE, ["data.gen_batch_size=0"], "error", "generation_batch", r"=0 is not a whole number of at least 1"),
    (DENSE, ["data.gen_batch_size=16", "trainer.v1.trainer_mode=colocate_async"],
     "warning", "generation_batch", r"=16 is overridden by 1"),
    (DENSE, ["data.gen_batch_size=16", "algorithm.filter_groups.enable=true"],
     "warning", "generation_batch", r"=16 is overridden by 1"),
    (DENSE, ["trainer.v1.trainer_mode=colocate_async", "trainer.v1.colocate_async.parameter_sync_step=3"],
     "error", "mini_batch", r"train_batch_size=64 prompts are not divided by parameter_sync_step=3.*Set it to 63"),
    # Parallel sizes.
    (EXPERTS, [f"{MEGATRON}.tensor_model_parallel_size=3"],
     "error", "trainer_parallel", r"=3 x pipeline 1 x context 1 = 3 does not divide the 32"),
    (EXPERTS, [f"{MEGATRON}.expert_model_parallel_size=64"],
     "error", "trainer_parallel", r"=64 x expert tensor 1.*does not divide the 32"),
    (DENSE, [f"{ACTOR}.fsdp_config.fsdp_size=3"],
     "error", "trainer_parallel", r"fsdp_size=3 does not divide the 8 cards"),
    (DENSE, [f"{ACTOR}.ulysses_sequence_parallel_size=3"],
     "error", "trainer_parallel", r"sequence_parallel_size=3 does not divide the 8"),
    (DENSE, [f"{ACTOR}.ulysses_sequence_parallel_size=2", f"{MODEL}.use_remove_padding=false"],
     "error", "trainer_parallel", r"use_remove_padding=False, but"),
    (DENSE, [f"{ROLLOUT}.tensor_model_parallel_size=3"],
     "error", "rollout_parallel", r"=3 x data parallel 1 makes replicas of 3"),
    (DENSE, [f"{ROLLOUT}.pipeline_model_parallel_size=2"], "error", "rollout_parallel", r"=2 is not implemented"),
    (DENSE, [f"{ROLLOUT}.expert_parallel_size=4"],
     "error", "rollout_parallel", r"=4 is neither 1 nor tensor x data parallel size = 2"),
    (EXPERTS, [f"{ROLLOUT}.tensor_model_parallel_size=16"],
     "warning", "rollout_parallel", r"=16 is more than the 8 cards of a node"),
    (DENSE, [architecture(models.R1_DISTILL_QWEN_1_5B), f"{ROLLOUT}.tensor_model_parallel_size=8"],
     "error", "heads", r"=8 does not split 12 attention heads.*Set it to 4"),
    (DENSE, [architecture(models.R1_DISTILL_QWEN_1_5B), f"{ACTOR}.ulysses_sequence_parallel_size=8"],
     "error", "heads", r"=8 does not split 12"),
    (EXPERTS, [f"{MEGATRON}.tensor_model_parallel_size=8"],
     "error", "heads", r"=8 does not divide 32 attention heads and 4 key-value"),
    (EXPERTS, [architecture(models.QWEN3_4B)], "error", "experts", r"=8, but the model has no experts"),
    (EXPERTS, [architecture({**models.QWEN3_30B_A3B, "num_experts": 100})],
     "error", "experts", r"=8 does not divide the 100 experts"),
    (EXPERTS, [architecture({**models.QWEN3_30B_A3B, "num_hidden_layers": 47}),
               f"{MEGATRON}.pipeline_model_parallel_size=2"],
     "error", "layers", r"=2 makes 2 stages.*47 layers"),
    (ASYNC, [f"{ROLLOUT}.nnodes=0"], "error", "separate_rollout", r"nnodes=0, but trainer_mode=separate_async"),
    (ASYNC, [f"{ROLLOUT}.checkpoint_engine.backend=naive"],
     "error", "separate_rollout", r"backend='naive' copies weights within one process.*nccl"),
    (ASYNC, [f"{ROLLOUT}.checkpoint_engine.backend=ncll"],
     "error", "separate_rollout", r"'ncll' is not a checkpoint engine of verl's.*Set it to nccl"),
    (EXPERTS, [f"{MEGATRON}.use_mbridge=false"], "error", "megatron", r"use_mbridge=False, but verl's engine asserts"),
    (EXPERTS, [f"{MEGATRON}.pad_to_length=true", f"+{MEGATRON}.router_replay.mode=R3",
               f"{ROLLOUT}.enable_rollout_routing_replay=true"],
     "error", "megatron", r"pad_to_length=True is refused by verl's engine together with router replay"),
    (EXPERTS, [f"{MEGATRON}.dynamic_context_parallel=true"],
     "error", "megatron", r"max_seqlen_per_dp_cp_rank is not a whole number.*Set it to 17408"),
    (EXPERTS, [f"{MEGATRON}.dynamic_context_parallel=true", f"{MEGATRON}.max_seqlen_per_dp_cp_rank=17408",
               f"{MODEL}.use_remove_padding=false", f"{MEGATRON}.pad_to_length=true",
               f"+{MEGATRON}.override_transformer_config.fp8=hybrid"],
     "error", "megatron", r"pad_to_length=True, but .*dynamic_context_parallel=True is refused with it"),
    (EXPERTS, [f"{MEGATRON}.dynamic_context_parallel=true", f"{MEGATRON}.max_seqlen_per_dp_cp_rank=17408",
               f"{MEGATRON}.pipeline_model_parallel_size=2", f"{MEGATRON}.virtual_pipeline_model_parallel_size=2"],
     "error", "megatron", r"virtual_pipeline_model_parallel_size=2, but .* is refused with it"),
    (EXPERTS, [f"{MEGATRON}.dynamic_context_parallel=true", f"{MEGATRON}.max_seqlen_per_dp_cp_rank=17408",
               "trainer.nnodes=1", f"{MEGATRON}.tensor_model_parallel_size=8"],
     "error", "megatron", r"needs an even number of data- and context-parallel ranks, and there is 1"),
    (DENSE, ["check.cpus_per_node=16"], "error", "cpus", r"cpus_per_node=16 is less than the 24.*num_cpus=32"),
    # The method and what it is measured against.
    (DENSE, [f"{LOSS}.loss_mode=drppo"], "error", "loss_mode", r"'drppo' is not a loss mode; known:.*drpo"),
    (DENSE, [f"{LOSS}._target_=verl.workers.config.PolicyLossConfig"],
     "error", "loss_mode", r"without its configuration\. Use \+method=drpo"),
    (DENSE, [f"{LOSS}.delta=-1"], "error", "policy_loss", r"delta=-1 must be a number above 0"),
    (DENSE, [f"{LOSS}.top_k=20"], "error", "policy_loss", r"top_k=20 has no effect on loss_mode='drpo'"),
    (DENSE, [f"{LOSS}.delta=null"], "error", "policy_loss", r"delta is not set.*Set it to 12\.5\."),
    (DENSE, [f"{LOSS}.penalty=k5"], "error", "policy_loss", r"penalty='k5' is not known\. Set it to null\..*chi2"),
    (DENSE, [f"{LOSS}.restrict_to=both"], "error", "policy_loss", r"restrict_to='both'.*Set it to null\."),
    (DENSE, [f"{LOSS}.penalty=l2", f"{LOSS}.advantage_weighted=false", f"{LOSS}.ratio_cap=5"],
     "error", "policy_loss", r"ratio_cap=5 caps a penalty.*Set it to null"),
    (DENSE, ["method=dppo_binary_tv", f"{LOSS}.ratio_cap=0"], "error", "policy_loss", r"ratio_cap=0 must be.*to 5\.0"),
    (DENSE, ["method=dppo_topk_tv", f"{LOSS}.top_k=2.5"], "error", "policy_loss", r"top_k=2\.5 must be a whole.*to 20"),
    (DENSE, ["method=drpo_adaptive", f"{LOSS}.target_outside=2"],
     "error", "policy_loss", r"target_outside=2 is a share.*Set it to 0\.01"),
    (DENSE, ["method=drpo_adaptive", f"{LOSS}.delta_min=0.3", f"{LOSS}.delta=0.2"],
     "error", "policy_loss", r"delta=0\.2 is not within.*Set it to 0\.3"),
    (DENSE, ["method=grpo", f"{LOSS}.delta=0.2"],
     "error", "policy_loss", r"delta=0\.2 has no effect.*Set it to null\..*clip_ratio_low"),
    (DENSE, [f"{CORRECTION}.bypass_mode=false"],
     "error", "policy_loss", r"bypass_mode=False, but loss_mode='drpo' is anchored"),
    (DENSE, [f"{ROLLOUT}.calculate_log_probs=false"],
     "error", "policy_loss", r"calculate_log_probs=False, but.*Set it to True"),
    (DENSE, [f"{LOSS}.bypass_mode=true", f"{CORRECTION}.bypass_mode=false"],
     "error", "anchor", r"policy_loss\.bypass_mode=True is a copy of.*=False"),
    (ASYNC, ["method=drpo_decoupled", "run.updates_per_rollout=4", f"{CORRECTION}.bypass_mode=true"],
     "error", "anchor", r"bypass_mode=True, but.*anchor=recomputed, and of 4 updates.*verl then keeps"),
    (DENSE, ["method=drpo_decoupled", f"{CORRECTION}.bypass_mode=false", f"{CORRECTION}.rollout_is=token"],
     "error", "rollout_correction", r"rollout_is='token', but.*count mu twice"),
    (CPU, ["precision=cpu_fp8_kv"],
     "note", "anchored_correction",
     r"0\.1 corrects.*fp8_e4m3.*Measured with a rollout in bf16, a KV cache in fp8_e4m3: .*around μ.*anchors\.md"),
    (CPU, ["precision=cpu_int8_weights"],  # which the study has not: where the least mismatch hurts
     "note", "anchored_correction", r"0\.1 corrects.*Measured with a rollout.*hurts at δ.*study\.md.*anchors\.md"),
    (CPU, ["precision=cpu_bf16_rollout", "method=drpo_topk"],
     "note", "anchored_correction", r"delta=0\.5 corrects.*bf16"),
    (DENSE, [f"{LOSS}.delta=0.2", f"{ROLLOUT}.quantization=fp8"],
     "note", "anchored_correction", r"delta=0\.2 corrects.*weights rounded to fp8"),
    (DENSE, ["trainer.use_v1=false"], "error", "trainer", r"use_v1=False, but.*legacy trainer"),
    (DENSE, [f"{ROLLOUT}.top_p=0.95"],
     "error", "sampling_distribution", r"top_p=0\.95, but.*another distribution.*Set it to 1\.0"),
    (DENSE, [f"{ROLLOUT}.top_k=50"], "error", "sampling_distribution", r"top_k=50, but.*Set it to -1"),
    (DENSE, [f"+{ROLLOUT}.repetition_penalty=1.1"], "error", "sampling_distribution", r"repetition_penalty=1\.1, but"),
    (DENSE, [f"+{ROLLOUT}.engine_kwargs.vllm.logprobs_mode=raw_logprobs"],
     "error", "sampling_distribution", r"raw_logprobs.*processed_logprobs"),
    (DENSE, [f"{CORRECTION}.rollout_is=token"],
     "error", "rollout_correction", r"rollout_is='token', but.*nothing in bypass mode"),
    (DENSE, ["method=dppo_topk_tv", f"{ACTOR}.ulysses_sequence_parallel_size=2"],
     "error", "top_k", r"=2, but.*not gathered across"),
    (DENSE, ["method=dppo_topk_tv", f"{ACTOR}.fsdp_config.pad_to_length=true"],
     "error", "top_k", r"fsdp_config\.pad_to_length=True, but.*padded logits.*Set it to False"),
    (EXPERTS, ["method=dppo_topk_tv", f"{MEGATRON}.pad_to_length=true"],
     "error", "top_k", r"megatron\.pad_to_length=True, but.*padded logits.*Set it to False"),
    (EXPERTS, ["method=dppo_topk_tv", f"{MEGATRON}.dynamic_context_parallel=true"],
     "error", "top_k", r"dynamic_context_parallel=True, but.*refuses to hand over.*Set it to False"),
    (EXPERTS, ["method=dppo_topk_tv", f"{MODEL}.use_fused_kernels=true"],
     "error", "top_k", r"use_fused_kernels=True, but.*never make.*Set it to False"),
    (EXPERTS, ["method=dppo_topk_tv", f"{ACTOR}.strategy=veomni"],
     "error", "top_k", r"strategy='veomni', but.*FSDP's and Megatron's engines.*Set it to fsdp"),
    (DENSE, ["method=cppo", f"{ACTOR}.ulysses_sequence_parallel_size=2"],
     "error", "whole_responses", r"=2, but.*'cppo' a response has to be whole"),
    (EXPERTS, [f"{LOSS}.sequence_mask.preset=skyrl", f"{MEGATRON}.context_parallel_size=2"],
     "error", "whole_responses", r"=2, but.*a response has to be whole.*Set it to 1"),
    (DENSE, ["method=drpo", f"{LOSS}.sequence_mask.metric=product"],
     "error", "policy_loss", r"sequence_mask\.metric='product' has no bounds"),
    (DENSE, ["method=dppo_topk_tv", f"{LOSS}.top_k=50", f"{ROLLOUT}.engine_kwargs.vllm.max_logprobs=20"],
     "error", "top_k", r"max_logprobs=20, but .*top_k=50: vLLM refuses to return more\. Set it to 50"),
    (DENSE, ["method=dppo_topk_tv", f"{LOSS}.top_k=50", f"{ROLLOUT}.engine_kwargs.vllm.max_logprobs=null"],
     "error", "top_k", r"max_logprobs, but .*top_k=50"),
    (DENSE, [f"+{ROLLOUT}.engine_kwargs.vllm.speculative_config={{method:ngram,num_speculative_tokens:3}}"],
     "warning", "speculative_decoding", r"speculative_config=.*decodes speculatively.*rejection sampler"),
    (DENSE, [f"{MODEL}.mtp.enable=true", f"{MODEL}.mtp.enable_rollout=true"],
     "warning", "speculative_decoding", r"mtp\.enable_rollout=True decodes speculatively"),
    (DENSE, [f"+{ROLLOUT}.engine_kwargs.vllm.speculative_config={{method:ngram,rejection_sample_method:synthetic}}"],
     "error", "speculative_decoding", r"'synthetic' accepts drafts at a given rate"),
    (CPU, [f"+{ROLLOUT}.engine_kwargs.vllm.speculative_config={{method:ngram,num_speculative_tokens:3}}"],
     "error", "speculative_decoding", r"needs Triton: on a CPU the engine dies"),
    (DENSE, [f"{ROLLOUT}.agent.default_agent_loop=single_turn"],
     "error", "agent_loop", r"'single_turn' is not an agent loop of verl's.*Set it to single_turn_agent"),
    (DENSE, [f"{ROLLOUT}.agent.num_workers=0"], "error", "agent_loop", r"num_workers=0 is not a whole number"),
    (DENSE, [f"{ROLLOUT}.prometheus.enable=true", f"{ROLLOUT}.disable_log_stats=true"],
     "error", "agent_loop", r"disable_log_stats=True, but .*prometheus\.enable=True reads"),
    (DENSE, ["skip.rollout_tq.enable=true"], "warning", "skipped_rollout", r"enable=True takes samples from ~/"),
    (DENSE, ["reward.reward_manager.name=naiv"], "error", "reward_manager", r"'naiv' is none of naive.*to naive"),
    (DENSE, ["reward.reward_manager.name=dapo",
             "+reward.reward_kwargs={overlong_buffer_cfg:{enable:true,len:4096},max_resp_len:2048}"],
     "error", "reward_manager", r"overlong_buffer_cfg\.len=4096 is not above 0 and at most max_resp_len=2048"),
    (DENSE, ["reward.reward_manager.name=dapo", "+reward.reward_kwargs={overlong_buffer_cfg:{enable:true,len:4096}}"],
     "error", "reward_manager", r"max_resp_len is not a whole number.*Set it to 8192"),
    (DENSE, ["reward.reward_model.enable=true", "reward.reward_model.enable_resource_pool=true"],
     "error", "reward_manager", r"reward_model\.nnodes=0 has to be at least 1"),
    (ASYNC, ["reward.reward_model.enable=true"],
     "error", "reward_manager", r"enable_resource_pool=False, but the rollout of trainer_mode=separate_async never"),
    (DENSE, ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=null"],
     "error", "filter_groups", r"metric is not set"),
    (DENSE, ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=score"],
     "error", "filter_groups", r"'score' is not returned by drpo-verl's reward"),
    (DENSE, ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.max_inflight_gen_batches=0"],
     "error", "filter_groups", r"max_inflight_gen_batches=0 is not a whole number"),
    (DENSE, ["algorithm.filter_groups.enable=true", "algorithm.filter_groups.max_num_gen_batches=10"],
     "warning", "filter_groups", r"max_num_gen_batches=10 is not read by verl's V1 trainer"),
    (DENSE, ["algorithm.filter_groups.enable=true", "reward.reward_model.enable=true"],
     "error", "filter_groups", r"needs the reward when groups are taken"),
    (DENSE, [f"{ROLLOUT}.temperature=0"], "error", "temperature", r"temperature=0 is no temperature to sample at"),
    (DENSE, [f"{ROLLOUT}.temperature=0.6"], "note", "temperature", r"temperature=0\.6 is what both engines divide"),
    (DENSE, [f"+{ROLLOUT}.engine_kwargs.vllm.override_generation_config={{temperature:0.5}}"],
     "warning", "temperature", r"behind the rollout's settings"),
    (DENSE, [f"{ROLLOUT}.val_kwargs.n=16"], "warning", "temperature", r"val_kwargs\.n=16 responses.*all the same"),
    (DENSE, [f"{ROLLOUT}.val_kwargs.do_sample=true"],
     "error", "temperature", r"val_kwargs\.temperature=0, but.*do_sample=True samples"),
    (DENSE, [f"{ROLLOUT}.val_kwargs.temperature=0.7"],
     "warning", "temperature", r"val_kwargs\.temperature=0\.7 samples, whatever .*do_sample=False says"),
    (DENSE, [f"{ROLLOUT}.val_kwargs.top_p=1.5"], "error", "temperature", r"top_p=1\.5 is not above 0 and at most 1"),
    (DENSE, [f"{ROLLOUT}.val_kwargs.top_k=-2"], "error", "temperature", r"top_k=-2 is neither -1 nor"),
    (EXPERTS, [f"+{MEGATRON}.router_replay.mode=R2"],
     "error", "router_replay", r"mode='R2', but bypass_mode=True.*router_replay\.mode=R3 and"),
    (EXPERTS, [f"+{MEGATRON}.router_replay.mode=R3"],
     "error", "router_replay", r"replay=False, but.*R3 replays the routes"),
    (DENSE, [f"{ROLLOUT}.enable_rollout_routing_replay=true"], "error", "router_replay", r"FSDP has no router replay"),
    (DENSE, [f"{ACTOR}.loss_scale_factor=null"],
     "error", "loss_scale", r"loss_scale_factor is not set.*max_response_length"),
    (DENSE, [f"{ACTOR}.loss_scale_factor=4096"],
     "note", "loss_scale", r"=4096 is not the response length \(8192\).*2 times"),
    (DENSE, ["method=dppo_binary_tv", f"{LOSS}.delta=1.5"],
     "warning", "thresholds", r"delta=1\.5 is never reached.*no token is masked"),
    (DENSE, [f"{LOSS}.delta=12.5"], "note", "thresholds", r"delta=12\.5 is never reached.*\[0\.92, 1\.08\]"),
    (DENSE, [f"{LOSS}.delta=0.00001"], "warning", "thresholds", r"below the mismatch of two engines in bf16"),
    (DENSE, ["method=dppo_binary_tv", f"{LOSS}.ratio_cap=0.5"], "warning", "thresholds", r"ratio_cap=0\.5 is below 1"),
    (DENSE, [f"{ACTOR}.clip_ratio_high=0.28"],
     "warning", "thresholds", r"clip_ratio_high=0\.28 is PPO's, and is not read"),
    (DENSE, ["method=grpo", f"{ACTOR}.clip_ratio=0.1"],
     "warning", "thresholds", r"clip_ratio=0\.1 has no effect beside"),
    (DENSE, [f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_coef=-0.1"],
     "error", "kl", r"kl_loss_coef=-0\.1 rewards the distance"),
    (DENSE, [f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_coef=0"],
     "warning", "kl", r"kl_loss_coef=0 pays for a reference"),
    (DENSE, [f"{ACTOR}.use_kl_loss=true", f"{ACTOR}.kl_loss_type=k4"],
     "error", "kl", r"kl_loss_type='k4' is none of kl"),
    (DENSE, ["algorithm.use_kl_in_reward=true", "algorithm.kl_penalty=k4"],
     "error", "kl", r"kl_penalty='k4' is none of kl"),
    (DENSE, ["algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.type=adaptative"],
     "error", "kl", r"'adaptative' is neither fixed nor adaptive"),
    (DENSE, ["algorithm.use_kl_in_reward=true", "algorithm.kl_ctrl.type=adaptive", "algorithm.kl_ctrl.horizon=0"],
     "error", "kl", r"horizon=0 is not a number of samples above 0"),
    (DENSE, [f"{ACTOR}.entropy_coeff=-0.01"], "warning", "entropy", r"=-0\.01 penalises entropy"),
    (DENSE, [f"{ROLLOUT}.n=1"], "warning", "advantages", r"rollout\.n=1 makes groups of one"),
    (DENSE, ["algorithm.adv_estimator=gae"], "warning", "advantages", r"'gae' trains a critic"),
    (DENSE, ["algorithm.adv_estimator=remax"],
     "error", "advantages", r"'remax' needs the rewards of greedy responses, which verl's V1 trainer does not hand"),
    (DENSE, ["algorithm.adv_estimator=optimal_token_baseline"], "error", "advantages", r"needs the sum of the squared"),
    (DENSE, ["algorithm.adv_estimator=grpo_passk", f"{ROLLOUT}.n=1"],
     "error", "advantages", r"n=1 makes groups of one, and adv_estimator=grpo_passk refuses"),
    (DENSE, [f"{ACTOR}.optim.clip_grad=null"], "error", "learning_rate", r"clip_grad is not set, which verl's engines"),
    (DENSE, [f"{ACTOR}.optim.lr=1e-3"], "error", "learning_rate", r"lr=0\.001 destroys the policy.*1e-6"),
    (DENSE, [f"{ACTOR}.optim.lr=5e-5"], "warning", "learning_rate", r"lr=5e-05 is far above"),
    (DENSE, [f"{ACTOR}.optim.lr=0"], "error", "learning_rate", r"lr=0 learns nothing"),
    (DENSE, [f"{ACTOR}.grad_clip=0.5"], "warning", "learning_rate", r"grad_clip=0\.5 is not read.*optim\.clip_grad"),
    (DENSE, [f"{ACTOR}.optim.lr_warmup_steps=500"], "warning", "learning_rate", r"warmup_steps=500 is not over"),
    # Lengths.
    (DENSE, [f"{ROLLOUT}.response_length=4096"],
     "warning", "lengths", r"response_length=4096 is not data\.max_response_length=8192"),
    (DENSE, [f"{ROLLOUT}.max_model_len=65536"],
     "error", "context", r"=65536 is above the model's max_position_embeddings=32768"),
    (DENSE, [f"{ROLLOUT}.max_model_len=1024"], "error", "context", r"=1024, but the longest prompt \(2048\) fills"),
    (DENSE, [f"{ROLLOUT}.max_model_len=9000"],
     "warning", "context", r"=9000, but prompt 2048 \+ response 8192.*cut short.*10240"),
    (DENSE, ["data.max_response_length=40000", f"{ACTOR}.ppo_max_token_len_per_gpu=50000"],
     "error", "context", r"no response can reach its 40000 tokens"),
    (DENSE, [f"{ROLLOUT}.max_num_batched_tokens=128"], "error", "scheduler", r"=128 is below max_num_seqs=256"),
    # Precision.
    (DENSE, [f"{ROLLOUT}.dtype=int8"], "error", "precision", r"dtype='int8' is no dtype of vLLM"),
    (DENSE, [f"{ROLLOUT}.dtype=float16"], "warning", "precision", r"samples in fp16, and the trainer computes in bf16"),
    (DENSE, [f"{ACTOR}.fsdp_config.model_dtype=bf16"],
     "warning", "precision", r"model_dtype='bf16' is what the optimiser updates"),
    (DENSE, [f"{ACTOR}.fsdp_config.dtype=float16"],
     "warning", "precision", r"fsdp_config\.dtype='float16' is not read.*computes in bf16.*param_dtype:fp16"),
    (DENSE, ["precision=fp16", architecture({**models.QWEN3_4B, "model_type": "gemma3_text"})],
     "error", "fp16", r"dtype='float16' is refused by vLLM for a model of the type gemma3_text"),
    (EXPERTS, [f"{MEGATRON}.dtype=float16", f"{ROLLOUT}.dtype=float16"],
     "warning", "fp16", r"'float16' trains a mixture of experts.*dense models"),
    (DENSE, ["precision=fp16", f"{ACTOR}.loss_scale_factor=1e8"],
     "warning", "fp16", r"param_dtype='fp16', but a token's gradient begins at 4.1e-05.*6\.1e-05"),
    (DENSE, ["head=fp32", f"{MODEL}.use_fused_kernels=true"],
     "error", "head", r"use_fused_kernels=True computes the logits by itself"),
    (DENSE, [f"+{ROLLOUT}.engine_kwargs.vllm.hf_overrides.head_dtype=float32"],
     "warning", "head", r"'float32' has the LM head in fp32 on one side only.*override_config\.head_dtype=float32"),
    (DENSE, [f"+{MODEL}.override_config.head_dtype=float32"],
     "warning", "head", r"one side only.*hf_overrides\.head_dtype=float32"),
    (DENSE, ["head=fp32", f"{MODEL}.override_config.head_dtype=float64"],
     "error", "head", r"head_dtype='float64' is not float32"),
    (DENSE, ["head=fp32", f"{ROLLOUT}.quantization=fp8"],
     "error", "head", r"hf_overrides\.quantization_config, but the rest of hf_overrides replaces verl's own"),
    (EXPERTS, [f"+{MODEL}.override_config.head_dtype=float32"],
     "error", "head", r"is not read by megatron"),
    (DENSE, [f"+{ROLLOUT}.engine_kwargs.vllm.quantization=experts_int8"],
     "warning", "vllm_quantization", r"'experts_int8' is vLLM's own, and verl quantises"),
    (DENSE, [f"+{ROLLOUT}.engine_kwargs.vllm.quantization=emulated_int4"],
     "error", "vllm_quantization", r"'emulated_int4' is an emulation.*vLLM on a CPU"),
    (CPU, ["precision=cpu_int4_weights", f"{ROLLOUT}.name=sglang"],
     "error", "vllm_quantization", r"'emulated_int4' is vLLM's, and the rollout engine is sglang"),
    (CPU, [f"++{ROLLOUT}.engine_kwargs.vllm.quantization=emulated_int5"],
     "error", "vllm_quantization", r"'emulated_int5' is none of emulated_fp8, emulated_int8"),
    (DENSE, [f"{ROLLOUT}.quantization=awq"], "error", "fp8", r"'awq' is none of fp8"),
    (CPU, [f"{ROLLOUT}.quantization=fp8"], "error", "fp8", r"needs AMX on a CPU"),
    (EXPERTS, [f"{ROLLOUT}.quantization=fp8", f"{ROLLOUT}.tensor_model_parallel_size=4"],
     "warning", "fp8", r"leaves 192 of the 768 columns of an expert.*cuts them finer.*Set it to 2,"),
    (DENSE, [f"{ROLLOUT}.quantization=fp8", f"{ROLLOUT}.tensor_model_parallel_size=8"],
     "error", "fp8", r"leaves 1216 of the 9728 columns of an MLP.*vLLM refuses.*Set it to 4"),
    (DENSE, [f"+{ACTOR}.megatron.override_transformer_config.fp8=hybrid"],
     "error", "fp8", r"'hybrid' is Megatron's, and the engine is fsdp2"),
    (EXPERTS, [f"+{MEGATRON}.override_transformer_config.fp8=hybrid"],
     "warning", "fp8", r"quantization.*the trainer computes in FP8"),
    (EXPERTS, [f"+{MEGATRON}.override_transformer_config.fp8=hybrid",
               f"+{MEGATRON}.override_transformer_config.fp8_recipe=blockwise"],
     "error", "fp8", r"optimizer_config\.fp8_recipe is not the model's \(blockwise\)"),
    (DENSE, [f"{MODEL}.lora.rank=32"], "error", "lora", r"lora\.rank=32 is not read by fsdp2"),
    (DENSE, [f"{MODEL}.lora_rank=1024"], "error", "lora", r"lora_rank=1024 is above 512"),
    (ASYNC, [f"{MODEL}.lora_rank=32"],
     "error", "lora", r"lora\.merge=False, but.*without its adapters.*Set it to True"),
    # The course of the run.
    (DENSE, ["trainer.v1.trainer_mode=asynchronous"], "error", "staleness", r"'asynchronous' is none of sync"),
    (DENSE, ["trainer.v1.trainer_mode=colocate_async", "trainer.v1.colocate_async.num_warmup_batches=0"],
     "warning", "staleness", r"=0 prefetches nothing"),
    (ASYNC, ["trainer.v1.separate_async.num_warmup_batches=8"],
     "warning", "staleness", r"=8 batches ahead are as stale"),
    (DENSE, ["trainer.v1.sampler.max_off_policy_threshold=0"],
     "error", "staleness", r"=0 is not a whole number of at least 1"),
    (DENSE, ["trainer.total_training_steps=0"], "error", "steps", r"total_training_steps=0 is not a whole number"),
    (DENSE, ["trainer.save_freq=-1"], "warning", "steps", r"save_freq=-1 saves nothing"),
    (DENSE, ["trainer.test_freq=500"], "note", "steps", r"test_freq=500 is more than the 400 steps"),
    (EXPERTS, ["trainer.default_local_dir=checkpoints"],
     "warning", "checkpoints", r"='checkpoints' is relative, and each of 4 nodes"),
    (DENSE, ["trainer.resume_mode=resume_path"], "error", "resume", r"resume_from_path is not set"),
    (DENSE, [f"{ACTOR}.checkpoint.save_contents=[model]", "trainer.resume_mode=auto"],
     "warning", "checkpoints", r"save_contents=.*leaves out optimizer, extra"),
    (DENSE, [f"{ACTOR}.checkpoint.load_contents=[model,extra]"],
     "warning", "checkpoints", r"load_contents=.*leaves out optimizer, which is saved: a resumed run begins"),
    (DENSE, [f"{ACTOR}.checkpoint.async_save=true"],
     "error", "checkpoints", r"async_save=True is Megatron's: verl would note no checkpoint of fsdp2"),
    (DENSE, ["trainer.resume_mode=never"], "error", "resume", r"resume_mode='never' is none of auto"),
    (DENSE, ["trainer.resume_mode=resume_path", "trainer.resume_from_path=/shared/checkpoints"],
     "error", "resume", r"resume_from_path='/shared/checkpoints' has to end with global_step_N"),
    (DENSE, ["trainer.resume_mode=resume_path", "trainer.resume_from_path=/shared/global_step_5/actor"],
     "error", "resume", r"has to end with global_step_N.*Set it to /shared/global_step_5"),
    (DENSE, ["trainer.resume_mode=resume_path", "trainer.resume_from_path=/shared/global_step_5"],
     "warning", "resume", r"is no folder on this machine"),
    (DENSE, ["trainer.resume_from_path=/shared/global_step_5"],
     "error", "resume", r"is not read with resume_mode=auto.*resume_mode=resume_path"),
    (DENSE, ["trainer.val_only=true", "trainer.val_before_train=false"],
     "error", "steps", r"val_only=True is read after the validation before training only"),
    (DENSE, ["trainer.val_only=true"], "note", "steps", r"validates, and trains nothing"),
    (DENSE, ["trainer.critic_warmup=500"], "error", "steps", r"critic_warmup=500 is more than the 400 steps"),
    (DENSE, ["trainer.critic_warmup=20"], "error", "steps", r"updates nothing in the first 19 steps"),
    (DENSE, ["trainer.critic_warmup=-1"], "error", "steps", r"critic_warmup=-1 is not a whole number"),
    (DENSE, ["trainer.logger=[console,wanbd]"], "error", "loggers", r"has 'wanbd', which verl does not know"),
    (DENSE, ["alerts.kl.steps=0"], "error", "alerts", r"alerts\.kl\.steps=0 must be a whole number"),
    # What is read.
    (DENSE, [f"{MODEL}.path=/nowhere/model"], "warning", "model_path", r"path='/nowhere/model' is not on this machine"),
    (DENSE, ["check.architecture=null"], "note", "model_path", r"check\.architecture is not set"),
    (DENSE, ["data.train_files=/nowhere/train.parquet"],
     "warning", "data_files", r"train_files='/nowhere/train\.parquet' is not on this"),
    (DENSE, ["data.train_files=null"], "error", "data_files", r"data\.train_files is not set"),
    (DENSE, ["reward.custom_reward_function.path=pkg://drpo_verl.rewards.rewards"],
     "error", "custom_code", r"rewards' is no module"),
    (DENSE, ["reward.custom_reward_function.name=score"],
     "error", "custom_code", r"name='score' is not defined in pkg://"),
    (DENSE, ["reward.custom_reward_function.path=/nowhere/reward.py"],
     "warning", "custom_code", r"reward\.py' is no module"),
    (DENSE, [f"{ROLLOUT}.agent.agent_loop_config_path=/nowhere/agents.yaml"],
     "warning", "paths", r"agents\.yaml' is not on this machine"),
    (DENSE, ["trainer.experiment_name=${oc.env:NO_SUCH_VARIABLE}"],
     "error", "interpolations", r"experiment_name does not resolve.*NO_SUCH_VARIABLE"),
    # Memory.
    (DENSE, [f"{ROLLOUT}.gpu_memory_utilization=1.5"], "error", "memory", r"=1\.5 is a share of the card"),
    (DENSE, [f"{ACTOR}.ppo_max_token_len_per_gpu=131072"],
     "warning", "memory", r"gpu_memory_gib=80 GiB a card.*logits.*ppo_max_token_len"),
    (DENSE, ["check.gpu_memory_gib=4"], "error", "memory", r"gpu_memory_gib=4 GiB a card, and the update is estimated"),
    (DENSE, [f"{ROLLOUT}.gpu_memory_utilization=0.95"], "warning", "memory", r"=0\.95 of the card.*param_offload=True"),
    (ASYNC, [f"{ROLLOUT}.gpu_memory_utilization=0.95"], "warning", "memory", r"=0\.95 of the card.*param_offload=True"),
    (EXPERTS, [f"{ROLLOUT}.gpu_memory_utilization=0.2"],
     "error", "memory", r"=0\.2 has no room for the rollout's weights"),
    (DENSE, [f"{ROLLOUT}.gpu_memory_utilization=0.1"], "error", "memory", r"=0\.1 leaves a KV cache of"),
    # What is left to verl.
    (DENSE, [f"{ROLLOUT}.name=???"], "error", "engines", r"rollout\.name is not set"),
    (DENSE, [f"{ROLLOUT}.name=vlm"], "error", "engines", r"='vlm' is not an engine.*vllm, sglang"),
    (DENSE, [f"{ACTOR}.strategy=fsdp3"], "error", "engines", r"='fsdp3' is not an engine.*Set it to fsdp2"),
    (DENSE, ["trainer.device=gpu"], "error", "engines", r"='gpu' is not a device.*cuda"),
    (CPU, [f"{ACTOR}.strategy=fsdp"], "error", "engines", r"strategy='fsdp' can not spread its parameters from a CPU"),
    (CPU, [f"{MODEL}.override_config.attn_implementation=flash_attention_2"],
     "error", "engines", r"'flash_attention_2' is verl's default, and needs a GPU.*Set it to sdpa"),
    (DENSE, ["algorithm.adv_estimator=grop"], "error", "advantages", r"='grop' is not one of verl's: .*grpo"),
    (CPU, ["data.train_files=mine.parquet"], "error", "data_files", r"has no effect: prepare\.data makes"),
    (CPU, ["prepare.data.n_train=48", "trainer.total_epochs=1", "trainer.total_training_steps=4"],
     "error", "data_rows", r"steps=4 is more than the 2 steps that the data is enough for.*2 rollouts of 24 prompts"),
    (CPU, ["prepare.data.n_train=10"], "error", "data_rows", r"n_train=10 problems are less than the 24 prompts"),
    (CPU, ["prepare.data.n_train=20", "trainer.total_epochs=1"], "error", "data_rows", r"n_train=20 problems are less"),
    (CPU, ["data.train_max_samples=10"], "error", "data_rows", r"train_max_samples=10 rows are less than the 24"),
    (CPU, ["data.train_max_samples=30", "trainer.total_epochs=2"],
     "error", "data_rows", r"more than the 2 steps.*30 rows are 1 rollout .*train_max_samples=30"),
    (CPU, ["prepare.data.n_val=0"], "error", "data_rows", r"n_val=0 has no problem to validate on"),
    (DENSE, ["data.train_files=train.csv"], "error", "data_files", r"verl reads \.parquet, \.json and \.jsonl only"),
    (CPU, [f"{MODEL}.path=mine"], "error", "model_path", r"has no effect: prepare\.policy makes"),
    (CPU, ["run.stall_seconds=0"], "error", "steps", r"stall_seconds=0 ends every run at once"),
    (DENSE, [f"{ACTOR}.loss_agg_mode=mean"],
     "error", "accepted_by_verl", r"is refused by verl: Invalid loss_agg_mode: mean"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("base", "overrides", "level", "rule", "message"), WRONG, ids=[f"{row[3]}:{','.join(row[1])}"[:90] for row in WRONG]
)
def test_it_is_found(base: tuple[str, ...], overrides: list[str], level: str, rule: str, message: str) -> None:
    found = findings_once(base, *overrides)
    ours = [str(each) for each in found if (each.level, each.rule) == (level, rule)]
    assert any(re.search(message, text) for text in ours), [(each.level, each.rule, str(each)) for each in found]
    own_words = "accepted_by_verl"  # verl's, which may name a remedy
    assert not [str(each) for each in found if each.level == "error" and not each.remedy and each.rule != own_words]
    assert not [each for each in found if each.setting.startswith("rule ")], "a rule raised"


WITHOUT_OVERRIDES = {
    "accepted_by_verl": "",  # verl's own words
    "checkpoints": r"absolute path on storage",
    "custom_code": r"Correct",
    "data_files": r"Set it to parquet files|see that every node has it|Make it again|or set data\.prompt_key",
    "interpolations": r"Set what it refers to",
    "loss_mode": r"Use \+method=drpo instead",  # applied in tests/contract/test_verl_entry_point.py
    "memory": r"more cards, or larger ones",
    "model_path": r"Is it on every node|a name on the hub",
    "paths": r"Is it on every node",
    "resume": r"Is it on the nodes|Name the folder of one step",
    "reward_package": r"Install it",
}
"""What no setting mends: the rule, and what its remedy says."""


@pytest.mark.parametrize(
    ("base", "overrides"), [row[:2] for row in WRONG], ids=[f"{row[3]}:{','.join(row[1])}"[:90] for row in WRONG]
)
def test_every_remedy_makes_its_finding_go_away(base: tuple[str, ...], overrides: list[str]) -> None:
    before, known = findings_once(base, *overrides), findings_once(base)
    for finding in before:
        if finding.level == "note" or finding in known:
            continue
        for remedy in _remedies(finding):
            after = findings_after(base, overrides, remedy, finding.rule)
            assert _without_numbers(finding) not in [_without_numbers(each) for each in after], (remedy, finding)
            earlier = {each.setting for each in before if (each.level, each.rule) == ("error", finding.rule)}
            assert not [str(each) for each in after if each.level == "error" and each.setting not in earlier], remedy


def _without_numbers(finding: Finding) -> tuple[str, str, str]:
    return finding.rule, finding.setting, re.sub(r"\d[\d.]*", "", finding.message)


def _remedies(finding: Finding) -> tuple[str, ...]:
    """What to type, each of which mends it."""
    assert finding.overrides or re.search(WITHOUT_OVERRIDES[finding.rule], finding.remedy), str(finding)
    # Nothing else in the sentence looks like something to type.
    typed = {each.rstrip(".,") for each in re.findall(r"[\w.~+]+=[^\s]+", finding.remedy) if "+method" not in each}
    assert typed <= {change for each in finding.overrides for change in each.split(" ")}, finding
    return finding.overrides


def test_every_rule_has_a_wrong_configuration() -> None:
    others = {"epochs", "reward_package", "verl_losses"}  # below
    others |= {"data_values", "prompt_lengths"}  # in test_data.py
    assert {row[3] for row in WRONG} | others == {rule.name for rule in preflight.RULES}


def test_fp8_beside_an_fp32_head_keeps_what_verl_gives_to_vllm() -> None:
    base = (*EXPERTS, f"+{ROLLOUT}.engine_kwargs.vllm.hf_overrides.head_dtype=float32")
    (finding,) = [each for each in findings(base, f"{ROLLOUT}.quantization=fp8") if each.level == "error"]
    (remedy,) = finding.overrides
    overrides = composed(base, f"{ROLLOUT}.quantization=fp8", remedy).actor_rollout_ref.rollout.engine_kwargs.vllm
    repeated = dict(overrides.hf_overrides.quantization_config)
    assert repeated.pop("ignored_layers") == [f"model.layers.{layer}.mlp.gate" for layer in range(48)]
    # verl's FP8_BLOCK_QUANT_KWARGS.
    expected = {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8", "weight_block_size": [128, 128]}
    assert repeated == expected


def test_in_fp16_it_is_said_what_its_range_leaves_of_a_gradient() -> None:
    (note,) = [str(each) for each in findings(DENSE, "precision=fp16") if each.rule == "fp16"]
    # 65,536 / (16 x 8 samples x 8,192 tokens) on each of 8 ranks: 0.5, and 2^-25 / 0.5.
    assert "less likely than 6.0e-08 is 0" in note
    (note,) = [str(each) for each in findings(DENSE, "precision=fp16", "head=fp32") if each.rule == "fp16"]
    assert "small gradients behind the LM head" in note and "less likely" not in note


@pytest.mark.parametrize("weight_format", ["int8", "int4", "int3", "fp8"])
def test_emulated_weights_are_named_for_what_they_are(weight_format: str) -> None:
    (note,) = [
        str(each) for each in findings((*CPU, f"precision=cpu_{weight_format}_weights")) if each.rule == "precision"
    ]
    assert f"but the rollout has weights rounded to {weight_format} and back (an emulation): a training-infer" in note


@pytest.mark.parametrize(("capability", "refused"), [("DEFAULT", True), ("AVX2", True), ("AVX512", False)])
def test_an_fp8_cache_needs_a_cpu_that_can(monkeypatch: pytest.MonkeyPatch, capability: str, refused: bool) -> None:
    monkeypatch.setattr("torch.backends.cpu.get_cpu_capability", lambda: capability)
    errors = [str(each) for each in findings((*CPU, "precision=cpu_fp8_kv")) if each.level == "error"]
    assert [
        bool(re.search(r"kv_cache_dtype='fp8_e4m3' needs AVX-512 or AMX.*Set it to auto", each)) for each in errors
    ] == ([True] if refused else [])


def test_more_than_one_pass_over_a_rollout_is_said() -> None:
    assert "8 updates on the same samples" in str(
        next(each for each in findings(DENSE, f"{ACTOR}.ppo_epochs=2") if each.rule == "epochs")
    )


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trainer.nnodes", "two"), ("trainer.total_epochs", "0"),
        ("data.train_batch_size", "0"), ("data.train_batch_size", "-64"),
        ("data.max_response_length", "0"), (f"{ROLLOUT}.response_length", "0"), (f"{ROLLOUT}.n", "8.5"),
        (f"{ROLLOUT}.tensor_model_parallel_size", "0"), (f"{ROLLOUT}.max_num_seqs", "0"),
        (f"{ACTOR}.ppo_mini_batch_size", "0"), (f"{ACTOR}.ppo_max_token_len_per_gpu", "0"),
        (f"{MEGATRON}.tensor_model_parallel_size", "-1"), (f"{ACTOR}.optim.lr", "abc"),
        (f"{ROLLOUT}.gpu_memory_utilization", "half"),
    ],
)  # fmt: skip
def test_what_is_no_number_is_said_once_and_nothing_that_follows_from_it(name: str, value: str) -> None:
    base = EXPERTS if name.startswith(MEGATRON) else DENSE
    before = {str(each) for each in findings(base)}
    errors = [each for each in findings(base, f"{name}={value}") if each.level != "note" and str(each) not in before]
    assert [(each.rule, each.setting) for each in errors] == [("numbers", name)], [str(each) for each in errors]


def test_what_is_no_number_hides_no_error_of_something_else() -> None:
    errors = [each for each in findings(DENSE, "data.train_batch_size=0", f"{LOSS}.delta=0") if each.level == "error"]
    assert {each.rule for each in errors} == {"numbers", "policy_loss"}


def test_all_errors_are_found_at_once() -> None:
    errors = [
        each
        for each in findings(DENSE, f"{LOSS}.delta=0", f"{ROLLOUT}.top_p=0.9", "data.train_files=null")
        if each.level == "error"
    ]
    assert {each.rule for each in errors} == {"policy_loss", "sampling_distribution", "data_files"}


@pytest.mark.parametrize(
    "section", ["trainer", "data", "actor_rollout_ref", "algorithm", "reward", "critic", "check", "run"]
)
def test_a_missing_section_is_no_crash(section: str) -> None:
    config = composed(DENSE)
    with open_dict(config):
        del config[section]
    assert all(isinstance(each, Finding) for each in preflight.check_run(RunConfig(config)))


def test_an_empty_configuration_is_no_crash() -> None:
    assert all(isinstance(each, Finding) for each in preflight.check_run(RunConfig(OmegaConf.create({}))))


def test_a_rule_that_raises_is_a_warning_that_names_it() -> None:
    def broken(run: object) -> list[Finding]:
        raise KeyError("oops")

    (finding,) = evaluate([Rule("broken", "", broken)], RunConfig(composed(DENSE)))
    assert finding.level == "warning" and "rule broken could not be evaluated (KeyError" in str(finding)


def test_a_model_folder_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**models.QWEN3_4B, "max_position_embeddings": 8192}))
    context = next(
        each
        for each in findings(DENSE, "check.architecture=null", f"{MODEL}.path={tmp_path}")
        if each.rule == "context"
    )
    assert "in the rollout's context of 8192 tokens" in str(
        context
    ) or "more than the rollout's context of 8192" in str(context)


def test_the_file_of_a_custom_reward_is_parsed_and_not_run(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    file.write_text("raise SystemExit('run')\ndef compute_score(): ...\n")
    assert not [
        each for each in findings(DENSE, f"reward.custom_reward_function.path={file}") if each.rule == "custom_code"
    ]


def test_the_file_of_a_custom_reward_that_is_no_python_is_an_error(tmp_path: Path) -> None:
    file = tmp_path / "reward.py"
    for content in (b"def compute_score(:\n", b"\xff\xfe\x00"):
        file.write_bytes(content)
        found = [
            each for each in findings(DENSE, f"reward.custom_reward_function.path={file}") if each.level == "error"
        ]
        assert [each.rule for each in found] == ["custom_code"] and "is no Python: " in str(found[0])


def test_our_reward_without_its_package_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "math_verify" else find(name, *rest)
    )
    (finding,) = [each for each in findings(DENSE) if each.rule == "reward_package"]
    assert finding.level == "error" and re.search(r"rewards\.reward' needs math-verify.*pip install", str(finding))
    own = tmp_path / "reward.py"
    own.write_text("def compute_score(): ...\n")
    assert "reward_package" not in {each.rule for each in findings(DENSE, f"reward.custom_reward_function.path={own}")}


@pytest.mark.parametrize(
    ("overrides", "level", "setting", "remedy"),
    [
        ([f"{CORRECTION}.bypass_mode=false"], "warning", f"{CORRECTION}.bypass_mode", f"{CORRECTION}.bypass_mode=True"),
        ([f"{ROLLOUT}.top_p=0.9"], "warning", f"{ROLLOUT}.top_p", f"{ROLLOUT}.top_p=1.0"),
        ([f"{ROLLOUT}.calculate_log_probs=false"], "error", f"{ROLLOUT}.calculate_log_probs",
         f"{ROLLOUT}.calculate_log_probs=True"),
    ],
)  # fmt: skip
def test_a_policy_loss_of_verl_is_looked_at_too(overrides: list[str], level: str, setting: str, remedy: str) -> None:
    own = [f"{LOSS}={{_target_:verl.workers.config.PolicyLossConfig,loss_mode:dppo_tv}}", *overrides]
    found = findings(DENSE, *own)
    (finding,) = [each for each in found if each.rule == "verl_losses"]
    assert (finding.level, finding.setting, finding.overrides) == (level, setting, (remedy,))
    assert not [str(each) for each in found if each.level == "error" and each != finding]
    assert "verl_losses" not in {each.rule for each in findings_after(DENSE, own, remedy, "verl_losses")}


def test_the_defaults_of_numbers_are_those_of_verl() -> None:
    for base in (DENSE, EXPERTS):
        config = compose_run([each for each in base if each.startswith(("backend=", "model_engine="))])
        run = RunConfig(config)
        given = {name: run.get(name) for name in NUMBERS if run.get(name) is not None}
        others = {"actor_rollout_ref.rollout.n_gpus_per_node": 8}  # as the trainer
        assert given == {name: number.default for name, number in NUMBERS.items() if name in given} | others
        assert len(given) > 35
