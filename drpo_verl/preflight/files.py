"""Rules about what a run reads: data, reward, model, code of the user's own. Nothing of it is imported or run."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import MODEL, ROLLOUT

_PACKAGE, _FILE = "pkg://", "file://"
_OUR_REWARD = "drpo_verl.rewards.reward"
_REMOTE = ("hdfs:", "s3:", "gs:", "http:", "https:")
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
    local = path.startswith(("/", "~", ".")) or (path.count("/") > 1 and not path.startswith(_REMOTE))
    if local and not Path(path).expanduser().exists():
        yield run.warning(name, "is not on this machine.", advice="Is it on every node?")


@rule
def data_files(run: RunConfig) -> Findings:
    """The data files are set once and there, have the columns that are read, and enough rows for a rollout."""
    if run.get("prepare.data") is not None:
        for name in ("data.train_files", "data.val_files"):
            if run.get(name) is not None:
                message = "has no effect: prepare.data makes what the run takes."
                yield run.error(name, message, f"{name}=null", advice="Files of your own need prepare.data to be null.")
        return
    for name in ("data.train_files", "data.val_files"):
        files = run.get(name)
        if not files:
            yield run.error(name, "is not set.", advice="Set it to parquet files.")
            continue
        rows, complete = 0, True
        for file in [files] if isinstance(files, str) else files:
            path = Path(str(file)).expanduser()
            if not path.is_file():
                complete = False
                if not str(file).startswith(_REMOTE):
                    message = "is not on this machine." if isinstance(files, str) else f"has {file}, which is not here."
                    advice = "Make it (`drpo-verl data` has the papers'), or see that every node has it."
                    yield run.warning(name, message, advice=advice)
            elif path.suffix == ".parquet":
                count, findings = _read_parquet(run, name, path)
                rows += count
                yield from findings
            else:
                complete = False
        if name == "data.train_files" and complete and rows < run.prompts:
            message = f"has {rows} rows, less than the {run.prompts} prompts of a rollout: verl drops an incomplete"
            # The largest rollout of whole mini-batches that so many rows are enough for.
            prompts = rows // (run.mini_batch * run.sync_step) * run.mini_batch * run.sync_step
            smaller = [f"data.train_batch_size={prompts}"] if prompts else []
            yield run.error(name, message + " one, so there is no step.", *smaller, advice="Or train on more.")


def _read_parquet(run: RunConfig, name: str, path: Path) -> tuple[int, list[Finding]]:
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except Exception as error:
        return 0, [run.error(name, f"has {path}, which is no parquet file ({error}).", advice="Make it again.")]
    columns = metadata.schema.to_arrow_schema().names
    wanted = (run.get("data.prompt_key", "prompt"), run.get("data.reward_fn_key", "data_source"), "reward_model")
    missing = [column for column in wanted if column not in columns]
    message = f"has {path.name} without the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}."
    advice = "Make it with `drpo-verl data`, or set data.prompt_key and data.reward_fn_key."
    return metadata.num_rows, [run.error(name, message, advice=advice)] if missing else []


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
        elif function is not None and function not in _defined_names(source):
            yield run.error(f"{section}.name", f"is not defined in {path}.", advice="Correct one of the two.")


@rule
def reward_package(run: RunConfig) -> Findings:
    """Our reward has math-verify, whose grammar reads the answers."""
    name = "reward.custom_reward_function.path"
    ours = str(run.get(name, "")).removeprefix(_PACKAGE).replace("/", ".") == _OUR_REWARD
    if ours and importlib.util.find_spec("math_verify") is None:
        advice = "Install it here and on every node: pip install math-verify, or all of 'drpo-verl[train]'."
        yield run.error(name, "needs math-verify, which is not installed here.", advice=advice)


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
