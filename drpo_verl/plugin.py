"""The composition root, and the entry point of the group ``verl.plugins``: the one module that knows every seam.

Importing verl in any process imports this module, which arranges what happens when verl's own modules are imported. It
has to be cheap (a run starts about ten processes) and must never break ``import verl``.
"""

from __future__ import annotations

import inspect
import logging
from functools import wraps
from types import ModuleType
from typing import TYPE_CHECKING, Any

try:
    from drpo_verl import cpu, seams
    from drpo_verl.seams import expect, expect_parameters, when_imported
except Exception as error:
    # verl reports what goes wrong in a plugin at DEBUG level only.
    logging.getLogger("drpo_verl").warning(
        "drpo-verl: the plugin could not be loaded (%s: %s); none of it is active. Reinstall it with its dependencies.",
        type(error).__name__,
        error,
    )
    raise

if TYPE_CHECKING:
    from omegaconf import DictConfig


@when_imported("hydra", "+method= is found where drpo-verl is installed only.")
def _search_path(module: ModuleType) -> None:
    # An installed drpo-verl is found by Hydra itself (hydra_plugins); one that is only on the path is not.
    from drpo_verl.configuration import search_path

    search_path.register()


@when_imported("verl.trainer.ppo.core_algos", "The loss modes of drpo-verl are not registered.")
def _losses(module: ModuleType) -> None:
    import drpo_verl.adapters.policy_loss  # noqa: F401


@when_imported(
    "verl.workers.engine_workers",
    "Metrics are means of micro-batch means; recomputed anchors, drpo_adaptive and Top-K methods do not work.",
)
def _actor(module: ModuleType) -> None:
    import drpo_verl.adapters.actor  # noqa: F401


@when_imported("verl.workers.engine.fsdp.transformer_impl", "FSDP's LM head is not in fp32, whatever head_dtype says.")
def _head(module: ModuleType) -> None:
    from drpo_verl.adapters.head import apply_to_engine

    apply_to_engine(module.FSDPEngine)


@when_imported(
    "verl.utils.fsdp_utils",
    "Where parameters lie on the host, a pi_old that separate_async recomputes is pi, and every distance from it is 0.",
)
def _kept_weights(module: ModuleType) -> None:
    name = "fsdp2_sharded_save_to_cpu"
    expect_parameters(getattr(module, name), f"verl.utils.fsdp_utils.{name}", "model")
    from drpo_verl.adapters.kept_weights import copying

    vars(module)[name] = copying(getattr(module, name))


@when_imported("verl.workers.rollout.replica", "Top-K methods get no Top-K log-probabilities.")
def _replica(module: ModuleType) -> None:
    registry = module.RolloutReplicaRegistry
    expect("vllm" in registry._registry, "RolloutReplicaRegistry", "an entry vllm")
    of_verl = registry._registry["vllm"]

    def load() -> Any:
        # Imports vLLM: only when verl itself is about to.
        from drpo_verl.adapters.top_k_server import replica

        return replica(of_verl())

    registry.register("vllm", load)


_SHARED_SOCKET = "Two runs on one machine, each with a Ray of its own, can get each other's weights, or hang."


@when_imported("verl.workers.rollout.vllm_rollout.vllm_rollout", _SHARED_SOCKET)
def _weight_sender(module: ModuleType) -> None:
    adapter = module.ServerAdapter
    expect("zmq_handle" in inspect.getsource(adapter.__init__), "ServerAdapter.__init__", "that it sets zmq_handle")
    from drpo_verl.adapters.weight_socket import name_for_sender

    adapter.__init__ = name_for_sender(adapter.__init__)


@when_imported("verl.workers.rollout.vllm_rollout.vllm_async_server", _SHARED_SOCKET)
def _weight_receiver(module: ModuleType) -> None:
    server = module.vLLMHttpServer
    told = "VERL_RAY_JOB_ID" in inspect.getsource(server.__init__)
    expect(told, "vLLMHttpServer.__init__", "that it tells vLLM the Ray job")
    from drpo_verl.adapters.weight_socket import name_for_receiver

    server.__init__ = name_for_receiver(server.__init__)


@when_imported("verl.trainer.ppo.v1.agent_loop_tq", "A run with run.seed is not repeatable.")
def _prompt_seeds(module: ModuleType) -> None:
    manager = module.AgentLoopManagerTQ
    expect_parameters(manager.generate_sequences, "AgentLoopManagerTQ.generate_sequences", "prompts")
    from drpo_verl.adapters.seeds import give_seeds

    manager.generate_sequences = give_seeds(manager.generate_sequences)


@when_imported("verl.experimental.agent_loop.agent_loop", "A run with run.seed is not repeatable.")
def _sample_seeds(module: ModuleType) -> None:
    worker = module.AgentLoopWorker
    names = ("sampling_params", "kwargs")  # the fields of a prompt, and the number of the sample, as session_id
    expect_parameters(worker._run_agent_loop, "AgentLoopWorker._run_agent_loop", *names)
    from drpo_verl.adapters.seeds import seed_samples, seed_worker

    worker._run_agent_loop = seed_samples(worker._run_agent_loop)
    worker.__init__ = seed_worker(worker.__init__, "agent loops")


@when_imported("verl.workers.rollout.llm_server", "With run.seed, all turns of a sample have the same random numbers.")
def _turn_seeds(module: ModuleType) -> None:
    client = module.LLMServerClient
    expect_parameters(client.generate, "LLMServerClient.generate", "request_id", "prompt_ids", "sampling_params")
    from drpo_verl.adapters.seeds import seed_turns

    client.generate = seed_turns(client.generate)


@when_imported("verl.trainer.ppo.v1.replay_buffer", "With run.seed, samples are trained on in the order they finished.")
def _sample_order(module: ModuleType) -> None:
    buffer = module.ReplayBuffer
    name = "ReplayBuffer._materialize_batch"
    expect_parameters(buffer._materialize_batch, name, "partition_id", "selected_prompt_uids")
    from drpo_verl.adapters.seeds import in_order_of_prompts

    buffer._materialize_batch = in_order_of_prompts(buffer._materialize_batch)


@when_imported("verl.workers.engine_workers", "run.seed reaches neither dropout nor the weights of a new adapter.")
def _rank_seeds(module: ModuleType) -> None:
    worker = module.ActorRolloutRefWorker
    expect_parameters(worker.__init__, "ActorRolloutRefWorker.__init__", "config", "role")
    from drpo_verl.adapters.seeds import seed_ranks

    worker.init_model = seed_ranks(worker.init_model)


@when_imported("verl.trainer.ppo.v1.trainer_base", "run.seed does not reach what a data sampler of yours draws.")
def _trainer_seed(module: ModuleType) -> None:
    expect_parameters(module.PPOTrainer.__init__, "PPOTrainer.__init__", "config")
    from drpo_verl.adapters.seeds import seed_worker

    module.PPOTrainer.__init__ = seed_worker(module.PPOTrainer.__init__, "trainer")


@when_imported("verl.experimental.reward_loop.reward_loop", "run.seed does not reach what a reward of yours draws.")
def _reward_seed(module: ModuleType) -> None:
    expect_parameters(module.RewardLoopWorker.__init__, "RewardLoopWorker.__init__", "config")
    from drpo_verl.adapters.seeds import seed_worker

    module.RewardLoopWorker.__init__ = seed_worker(module.RewardLoopWorker.__init__, "rewards")


@when_imported("verl.workers.rollout.llm_server", "Top-K methods get no Top-K log-probabilities.")
def _answers(module: ModuleType) -> None:
    client = module.LLMServerClient
    expect_parameters(client.generate, "LLMServerClient.generate", "request_id", "prompt_ids")
    from drpo_verl.adapters.top_k_answers import keep_answers

    client.generate = keep_answers(client.generate)


@when_imported("verl.experimental.agent_loop.agent_loop", "Top-K methods get no Top-K log-probabilities.")
def _samples(module: ModuleType) -> None:
    # Not in AgentLoopWorkerTQ, which Ray makes an actor of, and sends to other processes as it is in this one.
    worker, output = module.AgentLoopWorker, module.AgentLoopOutput
    expect_parameters(worker._run_agent_loop, "AgentLoopWorker._run_agent_loop", "sampling_params")
    expect({"prompt_ids", "response_ids", "extra_fields"} <= {*output.model_fields}, "AgentLoopOutput", "its tokens")
    from drpo_verl.adapters.top_k_answers import keep_for_sample, put_into_sample

    worker._run_agent_loop = keep_for_sample(worker._run_agent_loop)
    output.as_dict = put_into_sample(output.as_dict)


@when_imported("verl.utils.tracking", "Alerts are not announced, and wandb has no worst tokens.")
def _tracking(module: ModuleType) -> None:
    names = ("project_name", "experiment_name", "default_backend", "config")
    expect_parameters(module.Tracking.__init__, "verl.utils.tracking.Tracking", *names)
    expect_parameters(module.Tracking.log, "verl.utils.tracking.Tracking.log", "data", "step")
    from drpo_verl.adapters.tracking import with_alerts

    vars(module)["Tracking"] = with_alerts(module.Tracking)


@when_imported("verl.utils.config", "A wrong loss mode fails in the workers, after Ray has started.")
def _validation(module: ModuleType) -> None:
    original = module.validate_config
    expect_parameters(original, "verl.utils.config.validate_config", "config")

    @wraps(original)
    def validate_config(config: DictConfig, *args: Any, **kwargs: Any) -> Any:
        from drpo_verl.check import validate_or_raise

        for finding in validate_or_raise(config):
            if finding.level == "warning":
                seams.warn(str(finding))
        return original(config, *args, **kwargs)

    vars(module)["validate_config"] = validate_config


def _metric_names(module: ModuleType) -> None:
    expect_parameters(module.rename_dict, f"{module.__name__}.rename_dict", "data", "prefix")
    from drpo_verl.adapters.driver_metrics import keep_namespaces

    vars(module)["rename_dict"] = keep_namespaces(module.rename_dict)


for _trainer in ("verl.trainer.ppo.v1.trainer_base", "verl.trainer.ppo.ray_trainer"):
    when_imported(_trainer, "Our metrics are logged with the prefix actor/.")(_metric_names)


@when_imported("verl.trainer.ppo.v1.utils", "Asynchronously, our metrics are averages of those of a step's updates.")
def _aggregation(module: ModuleType) -> None:
    aggregator = module.MetricsAggregator
    expect_parameters(aggregator._get_aggregation_type, "MetricsAggregator._get_aggregation_type", "metric_name")
    expect(aggregator()._aggregate_single_metric("lr", [1.0, 2.0]) == 2.0, "MetricsAggregator", "that lr is the last")
    from drpo_verl.adapters.driver_metrics import keep_the_last

    aggregator._get_aggregation_type = keep_the_last(aggregator._get_aggregation_type)


@when_imported("verl.experimental.reward_loop.reward_loop", "A reward that is no number reaches the trainer.")
def _rewards(module: ModuleType) -> None:
    from drpo_verl.adapters.failures import check_rewards

    check_rewards(module.RewardLoopWorker)


@when_imported("verl.experimental.agent_loop.agent_loop", "It is not said why a sample's rollout has failed.")
def _rollouts(module: ModuleType) -> None:
    from drpo_verl.adapters.failures import refuse_empty_responses, report_failures

    report_failures(module.AgentLoopWorker)
    refuse_empty_responses(module.AgentLoopOutput)


@when_imported("verl.trainer.ppo.v1.replay_buffer", "A sample whose rollout has failed is left out of its group.")
def _replay_buffer(module: ModuleType) -> None:
    from drpo_verl.adapters.failures import raise_failures

    raise_failures(module.ReplayBuffer)


if cpu.is_selected():
    from drpo_verl.cpu import verl_hooks  # noqa: F401  registers the platform and its workarounds

if not seams.verl_is_supported():
    seams.warn(
        f"verl {seams.verl_version()} is installed, and drpo-verl supports verl {seams.SUPPORTED_VERL}. "
        "A seam that differs is named in a warning of its own."
    )
    seams.warn_of_missing_modules()
