"""Rules about what a run reads beside its data: reward, model, code of the user's own. Nothing is imported or run."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import MODEL, ROLLOUT

_PACKAGE, _FILE = "pkg://", "file://"
_OUR_REWARD = "drpo_verl.rewards.reward"
REMOTE = ("hdfs:", "s3:", "gs:", "http:", "https:")
"""How a path begins that is not on a disk."""
_PATHS = (
    f"{MODEL}.tokenizer_path",
    f"{MODEL}.hf_config_path",
    f"{MODEL}.lora_adapter_path",
    f"{ROLLOUT}.agent.agent_loop_config_path",
    f"{ROLLOUT}.multi_turn.tool_config_path",
    f"{ROLLOUT}.quantization_config_file",
)
_CODE = (
    ("reward.custom_reward_function", "compute_score"),
    ("data.custom_cls", None),
    ("trainer.v1.sampler.custom_sampler", None),
    (f"{ROLLOUT}.agent.custom_async_server", None),
)


@rule
def model_path(run: RunConfig) -> Findings:
    """The model is set once, is there if it is a folder, and its sizes are known here."""
    name = f"{MODEL}.path"
    path = run.get(name)
    if run.get("prepare.policy") is not None:
        if path is not None:
            message = "has no effect: prepare.policy makes what the run takes."
            yield run.error(name, message, f"{name}=null", "prepare.policy=null")
        return
    if path is None:
        yield run.error(name, "is not set.", advice="Set it to a folder, or to a name on the hub.")
    yield from _missing(run, name)
    if run.architecture is None:
        message = "is not set, and the model is no folder on this machine: its sizes are not checked, and its memory "
        yield run.note("check.architecture", message + "is not estimated. Set it to the fields of its config.json.")


def _missing(run: RunConfig, name: str) -> Findings:
    path = str(run.get(name, ""))
    local = path.startswith(("/", "~", ".")) or (path.count("/") > 1 and not path.startswith(REMOTE))
    if local and not Path(path).expanduser().exists():
        yield run.warning(name, "is not on this machine.", advice="Is it on every node?")


@rule
def custom_code(run: RunConfig) -> Findings:
    """The reward function, and other code of the user's own, is found where the configuration has it."""
    for section, default in _CODE:
        path, function = run.get(f"{section}.path"), run.get(f"{section}.name", default)
        if path is None:
            continue
        name = f"{section}.path"
        source = _source(str(path))
        if source is None:
            # A package that is not here may be in the image of the nodes; a module of ours is, or is nowhere.
            report = run.error if str(path).startswith(_PACKAGE + "drpo_verl") else run.warning
            advice = "Correct it, or see that every node has it."
            yield report(name, "is no module that this machine has.", advice=advice)
            continue
        try:
            defined = _defined_names(source)
        except (SyntaxError, ValueError) as error:  # the latter of what is no text
            yield run.error(name, f"is no Python: {error}.", advice="Correct it.")
            continue
        if function is not None and function not in defined:
            yield run.error(f"{section}.name", f"is not defined in {path}.", advice="Correct one of the two.")


@rule
def reward_package(run: RunConfig) -> Findings:
    """Our reward has math-verify, whose grammar reads the answers."""
    name = "reward.custom_reward_function.path"
    if is_our_reward(run) and importlib.util.find_spec("math_verify") is None:
        advice = "Install it here and on every node: pip install math-verify, or all of 'drpo-verl[train]'."
        yield run.error(name, "needs math-verify, which is not installed here.", advice=advice)


def is_our_reward(run: RunConfig) -> bool:
    """Whether the reward is that of drpo-verl."""
    path = str(run.get("reward.custom_reward_function.path", ""))
    return path.removeprefix(_PACKAGE).replace("/", ".") == _OUR_REWARD


def _source(path: str) -> Path | None:
    if path.startswith(_PACKAGE):
        try:
            spec = importlib.util.find_spec(path.removeprefix(_PACKAGE).replace("/", "."))
        except (ImportError, ValueError):
            return None
        return Path(spec.origin) if spec is not None and spec.origin else None
    file = Path(path.removeprefix(_FILE)).expanduser()
    return file if file.is_file() else None


def _defined_names(source: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(source.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return names


@rule
def paths(run: RunConfig) -> Findings:
    """Other files and folders that the configuration names are there."""
    for name in _PATHS:
        yield from _missing(run, name)
