"""``python -m drpo_verl.train experiment=<name> [overrides]``: verl's ``main_ppo`` over ``hydra_configs/train.yaml``.

Prepares what the experiment needs, validates the configuration before Ray starts, shows one line a step instead of
the logs of ten processes, ends a run that hangs, and says where everything is.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import traceback
from pathlib import Path

import hydra
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from drpo_verl import cpu
from drpo_verl.check import raise_if_errors
from drpo_verl.check.method import has_no_effect
from drpo_verl.configuration import search_path
from drpo_verl.configuration.compose import CompositionError, compose_run
from drpo_verl.configuration.run_config import WORKER_CPUS, RunConfig
from drpo_verl.configuration.sections import ENVIRONMENT, RUN_VARIABLE
from drpo_verl.cpu.prefork import fork_server
from drpo_verl.errors import describe_error
from drpo_verl.launch.cleanup import Cleanup, cleaned_up_afterwards
from drpo_verl.launch.cluster import (
    RAY_INIT,
    cluster_address,
    join_cluster,
    require_free_cluster,
    require_resources,
    require_shared_folder,
)
from drpo_verl.launch.console import Follower, logs_to_file
from drpo_verl.launch.deaths import DeathWatch
from drpo_verl.launch.ending import RunEndedError, RunFacts
from drpo_verl.launch.shortfall import ShortfallError, require_all_steps
from drpo_verl.launch.summary import LOG_FILE, display_path, summarise
from drpo_verl.metrics.alerts import SECTION, Monitor, parse_alerts
from drpo_verl.preflight import check_run
from drpo_verl.preflight.resume import go_on_from_a_whole_step
from drpo_verl.run_folder.environment import write_environment
from drpo_verl.run_folder.parts import keep_earlier
from drpo_verl.run_folder.steps import METRICS_FILE, PICTURE_FILE, SUMMARY_FILE
from drpo_verl.run_folder.worst_tokens import WORST_TOKENS_FILE

_RUNTIME_ENV = f"{RAY_INIT}.runtime_env"


def export_environment(config: DictConfig) -> None:
    """Give this process the environment that the run's Ray workers get; what the user has set wins, for both."""
    variables = OmegaConf.select(config, ENVIRONMENT) or {}
    for name, value in variables.items():
        variables[name] = os.environ.setdefault(name, str(value))


def prepare(config: DictConfig) -> None:
    """Make the model folder and the data files that the experiment asks for, and put their paths in their place."""
    if config.prepare.policy is not None:
        config.actor_rollout_ref.model.path = str(instantiate(config.prepare.policy, _convert_="all"))
        config.prepare.policy = None
    if config.prepare.data is not None:
        train_file, val_file = instantiate(config.prepare.data, _convert_="all")
        config.data.train_files, config.data.val_files = str(train_file), str(val_file)
        config.prepare.data = None


def validate(config: DictConfig, console: Console) -> None:
    """Check the whole run (``drpo_verl.preflight``), without starting anything, and print the warnings.

    Raises:
        ValueError: with every setting that can not work, and its remedy.
    """
    findings = check_run(RunConfig(config))
    for finding in findings:
        if finding.level == "warning":
            console.print(f"warning: {finding}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    raise_if_errors(findings)


def run_verl(config: DictConfig) -> None:
    """Run verl's own ``main_ppo.main`` on a composed configuration."""
    from verl.trainer import main_ppo

    main_ppo.main.__wrapped__(config)


def _where_the_logs_are(log: Path) -> str:
    return f"The logs are in {display_path(log)}"


def _run(config: DictConfig) -> None:
    require_shared_folder(config.run.dir)
    folder = Path(config.run.dir).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    log, metrics = folder / LOG_FILE, folder / METRICS_FILE
    keep_earlier(folder, [LOG_FILE])
    with open_dict(config):
        config.run.dir = str(folder)
        loggers = config.trainer.logger
        loggers = [loggers] if isinstance(loggers, str) else list(loggers)
        # The terminal view, the picture and the summary are made of the metrics file.
        config.trainer.logger = loggers if "file" in loggers else [*loggers, "file"]
        cluster = cluster_address(config)
        if cluster is not None:
            join_cluster(config)
        export_environment(config)
        OmegaConf.update(config, f"{ENVIRONMENT}.VERL_FILE_LOGGER_PATH", str(metrics), force_add=True)
        os.environ["VERL_FILE_LOGGER_PATH"] = str(metrics)
        facts = RunFacts.of(config)
    with contextlib.ExitStack() as until_the_end:
        cleanup = until_the_end.enter_context(cleaned_up_afterwards(facts, _starts_ray(config, cluster)))
        OmegaConf.update(config, f"{ENVIRONMENT}.{RUN_VARIABLE}", cleanup.mark, force_add=True)
        if _can_prefork(config):
            python = until_the_end.enter_context(fork_server(log))
            OmegaConf.update(config, f"{_RUNTIME_ENV}.py_executable", shlex.quote(python), force_add=True)
        with logs_to_file(log) as console:
            console.print(f"checking the configuration; logs: {display_path(log)}", highlight=False, soft_wrap=True)
            validate(config, console)
            go_on_from_a_whole_step(config)
            if cluster is not None:
                console.print(f"joining the Ray cluster at {cluster}", highlight=False, soft_wrap=True)
                if config.trainer.device in ("cpu", "cuda"):  # another accelerator goes by its own name in Ray
                    run = RunConfig(config)
                    # The cards that verl reserves (worker slots, on a CPU).
                    workers = run.world + (run.rollout_world if run.standalone_rollout else 0)
                    require_resources(cluster, gpus=workers, cpus=WORKER_CPUS * workers)
        # Only now: the run may have been refused.
        keep_earlier(folder, (METRICS_FILE, WORST_TOKENS_FILE, PICTURE_FILE, SUMMARY_FILE))
        write_environment(folder)
        with open_dict(config):
            prepare(config)
            OmegaConf.resolve(config)  # verl does it in a worker, whose environment (a cluster's) may be another
        _train(config, folder, cluster, facts, cleanup)
    summarise(config, folder, Console())
    try:
        require_all_steps(config, facts, sys.argv[1:])
    except ShortfallError as error:
        facts.end(str(error).partition(": ")[0])
        raise


def _starts_ray(config: DictConfig, cluster: str | None) -> bool | None:
    """Whether the run starts a Ray of its own; None where Ray decides it by what runs on this machine."""
    if cluster is not None:
        return False
    return True if OmegaConf.select(config, f"{RAY_INIT}.address") == "local" else None


def _can_prefork(config: DictConfig) -> bool:
    """Whether workers can be forked: of a run on a CPU with a Ray of its own, which starts them in the usual way."""
    runtime_env = OmegaConf.select(config, _RUNTIME_ENV) or {}
    others = [name for name in ("py_executable", "pip", "uv", "conda", "image_uri") if runtime_env.get(name)]
    own_ray = bool(_starts_ray(config, cluster_address(config)))
    return bool(config.run.prefork) and cpu.is_selected() and own_ray and not others


def _train(config: DictConfig, folder: Path, cluster: str | None, facts: RunFacts, cleanup: Cleanup) -> None:
    """Train to the end.

    Raises:
        RunEndedError: training has ended early.
    """
    import ray

    log = folder / LOG_FILE
    with logs_to_file(log) as console:
        if cluster is not None:
            require_free_cluster(cluster)

        def give_up(why: str, hint: str, exit_code: int) -> None:
            message = "\n".join(filter(None, [facts.end(why), hint, _where_the_logs_are(log)]))
            console.print(f"\nerror: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
            cleanup.ending_is_said()
            # The main thread waits inside Ray and can not be interrupted; Ray's processes end with the driver's.
            os._exit(exit_code)

        monitor = Monitor(parse_alerts(config.get(SECTION)), nan="NaN or infinite")
        watch = DeathWatch(cleanup.mark)
        stall_seconds = RunConfig(config).number("run.stall_seconds")
        follower = Follower(
            folder, console, config.trainer.total_training_steps, stall_seconds, log, monitor, watch, give_up
        )
        follower.start()
        try:
            run_verl(config)
        except (SystemExit, KeyboardInterrupt):  # SystemExit: of Ray's handler of SIGTERM, which `ray job stop` sends
            console.print(facts.end("stopped"), markup=False, highlight=False, soft_wrap=True)
            raise
        except Exception as error:
            # A process that has died is the cause, and what verl says of it the consequence.
            raise RunEndedError(facts.end(watch.wait(error) or describe_error(error))) from error
        finally:
            follower.finish()
            ray.shutdown()  # here, since what its processes say as they end belongs into the logs


@hydra.main(config_path=str(search_path.config_dir()), config_name="train", version_base="1.3")
def _main(config: DictConfig) -> None:
    try:
        _run(config)
    except Exception as error:
        # Hydra wraps what a configured class raises.
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        plain = isinstance(cause, ValueError | AssertionError | RunEndedError | ShortfallError)
        log = Path(config.run.dir) / LOG_FILE
        with contextlib.suppress(OSError), log.open("a") as file:  # a full disk must not hide the error
            traceback.print_exception(error, file=file)
        sys.exit(f"\nerror: {cause if plain else describe_error(cause)}\n{_where_the_logs_are(log)}")


def main() -> None:
    """Compose the configuration of the command line, and run it."""
    search_path.register()
    overrides = sys.argv[1:]
    # Hydra itself names no choices for a misspelt one. With options of its own (--cfg, --multirun) it is left alone.
    if not any(each.startswith("-") for each in overrides):
        try:
            compose_run(overrides, has_no_effect)
        except CompositionError as error:
            sys.exit(f"error: {error}")
    _main()


if __name__ == "__main__":
    main()
