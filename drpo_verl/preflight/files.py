"""Rules about what a run reads: data, reward, model, code of the user's own. Nothing of it is imported or run."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

from drpo_verl.check.registry import rule
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.run_config import MODEL, ROLLOUT, Run

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
def model_path(run: Run) -> Iterable[Finding]:
    """The model is set once, is there if it is a folder, and its sizes are known here."""
    name = f"{MODEL}.path"
    path = run.get(name)
    if run.get("prepare.policy") is not None:
        yield from _made(run, name, "prepare.policy")
        return
    if path is None:
        yield run.error(name, "is not set.", "Set it to a folder, or to a name on the hub.")
    elif _is_local(str(path)) and not Path(path).expanduser().exists():
        yield run.warning(name, "is not on this machine.", "Is it on every node?")
    if run.architecture is None:
        yield run.note(
            "check.architecture",
            "is not set, and the model is no folder on this machine: its sizes are not checked, and "
            "its memory is not estimated. Set it to the fields of the model's config.json.",
        )


def _made(run: Run, name: str, by: str) -> Iterable[Finding]:
    # The groups that make them set them to null.
    if run.get(name) is not None:
        yield run.error(name, f"has no effect: {by} makes what the run takes.", f"Leave it out, or set {by}=null too.")


def _is_local(path: str) -> bool:
    return path.startswith(("/", "~", ".")) or path.count("/") > 1


@rule
def data_files(run: Run) -> Iterable[Finding]:
    """The data files are set once and there, have the columns that are read, and enough rows for a rollout."""
    if run.get("prepare.data") is not None:
        for name in ("data.train_files", "data.val_files"):
            yield from _made(run, name, "prepare.data")
        return
    for key in ("train_files", "val_files"):
        name = f"data.{key}"
        files = run.get(name)
        if not files:
            yield run.error(name, "is not set.", "Set it to parquet files.")
            continue
        rows, complete = 0, True
        for file in [files] if isinstance(files, str) else files:
            path = Path(str(file)).expanduser()
            if not path.is_file():
                complete = False
                if not str(file).startswith(_REMOTE):
                    message = "is not on this machine." if isinstance(files, str) else f"has {file}, which is not here."
                    yield run.warning(
                        name, message, "Make it (`drpo-verl data` has the papers'), or see that every node has it."
                    )
            elif path.suffix == ".parquet":
                count, findings = _read_parquet(run, name, path)
                rows += count
                yield from findings
            else:
                complete = False
        if key == "train_files" and complete and rows < run.prompts:
            yield run.error(
                name,
                f"has {rows} rows, less than the {run.prompts} prompts of a rollout: verl drops an incomplete one, "
                "so there is no step.",
                "Set a smaller data.train_batch_size.",
            )


def _read_parquet(run: Run, name: str, path: Path) -> tuple[int, list[Finding]]:
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_metadata(path)
    except Exception as error:
        return 0, [run.error(name, f"has {path}, which is no parquet file ({error}).", "Make it again.")]
    columns = metadata.schema.to_arrow_schema().names
    wanted = (run.get("data.prompt_key", "prompt"), run.get("data.reward_fn_key", "data_source"), "reward_model")
    missing = [each for each in wanted if each not in columns]
    problem = run.error(
        name,
        f"has {path.name} without the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}.",
        "Make it with `drpo-verl data`, or set data.prompt_key and data.reward_fn_key.",
    )
    return metadata.num_rows, [problem] if missing else []


@rule
def custom_code(run: Run) -> Iterable[Finding]:
    """The reward function, and other code of the user's own, is found where the configuration has it."""
    for section, default in _CODE:
        path, function = run.get(f"{section}.path"), run.get(f"{section}.name", default)
        if path is None:
            continue
        name = f"{section}.path"
        source = _source(str(path))
        if source is None:
            # A package that is not here may be in the image of the nodes; a module of ours is, or is nowhere.
            level = run.error if str(path).startswith(_PACKAGE + "drpo_verl") else run.warning
            yield level(name, "is no module that this machine has.", "Correct it, or see that every node has it.")
        elif function is not None and function not in _names(source):
            yield run.error(f"{section}.name", f"is not defined in {path}.", "Correct one of the two.")


@rule
def reward_package(run: Run) -> Iterable[Finding]:
    """Our reward has math-verify, which decides what is right."""
    name = "reward.custom_reward_function.path"
    ours = str(run.get(name, "")).removeprefix(_PACKAGE).replace("/", ".") == _OUR_REWARD
    if ours and importlib.util.find_spec("math_verify") is None:
        yield run.error(
            name, "needs math-verify, which is not installed here.",
            "Install it here and on every node: pip install math-verify, or all of 'drpo-verl[train]'.",
        )  # fmt: skip


def _source(path: str) -> Path | None:
    if path.startswith(_PACKAGE):
        try:
            spec = importlib.util.find_spec(path.removeprefix(_PACKAGE).replace("/", "."))
        except (ImportError, ValueError):
            return None
        return Path(spec.origin) if spec is not None and spec.origin else None
    file = Path(path.removeprefix(_FILE)).expanduser()
    return file if file.is_file() else None


def _names(source: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.parse(source.read_text()).body:
        names.update(_bound(node))
    return names


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name for alias in node.names)
    elif isinstance(node, ast.Assign):
        yield from (target.id for target in node.targets if isinstance(target, ast.Name))


@rule
def paths(run: Run) -> Iterable[Finding]:
    """Other files and folders that the configuration names are there."""
    for name in _PATHS:
        path = run.get(name)
        local = isinstance(path, str) and _is_local(path) and not path.startswith(_REMOTE)
        if local and not Path(path).expanduser().exists():
            yield run.warning(name, "is not on this machine.", "Is it on every node?")


@rule
def interpolations(run: Run) -> Iterable[Finding]:
    """Every interpolation of the configuration resolves."""
    for name, error in run.unresolved.items():
        # Hydra's own are resolved once it runs.
        if "HydraConfig" not in str(error) and not name.startswith("hydra."):
            reason = str(error).strip().splitlines()[0]
            yield Finding("error", name, None, f"does not resolve: {reason}.", "Set what it refers to.")
