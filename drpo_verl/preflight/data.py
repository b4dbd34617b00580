"""Rules about the data files: that they are there, what is in their rows, and that the rows are enough."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from drpo_verl.check.rule import Findings, rule
from drpo_verl.configuration.finding import Finding
from drpo_verl.configuration.numbers import is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import ROLLOUT
from drpo_verl.data.faults import Columns, faults
from drpo_verl.preflight.files import REMOTE, is_our_reward
from drpo_verl.preflight.rows import FILTER, Rows, lengths_above, parquet_files, rows_of, schema_of

if TYPE_CHECKING:
    import pyarrow as pa

_SPLITS = ("train", "val")
_STEPS, _EPOCHS = "trainer.total_training_steps", "trainer.total_epochs"


@rule
def data_files(run: RunConfig) -> Findings:
    """The data files are set once and there, are parquet files, and have the columns that are read."""
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
        for file in [files] if isinstance(files, str) else files:
            path = Path(str(file)).expanduser()
            if path.suffix not in (".parquet", ".json", ".jsonl") and run.get("data.custom_cls.path") is None:
                message = f"has {file}, and verl reads .parquet, .json and .jsonl only, by the name."
                yield run.error(name, message, advice="Set it to parquet files.")
            elif not path.is_file():
                if not str(file).startswith(REMOTE):
                    message = "is not on this machine." if isinstance(files, str) else f"has {file}, which is not here."
                    advice = "Make it (`drpo-verl data` has the papers'), or see that every node has it."
                    yield run.warning(name, message, advice=advice)
            elif path.suffix == ".parquet":
                yield from _columns(run, name, path)
            else:
                yield run.note(
                    name, f"has {path.name}, whose rows are not looked into: only those of parquet files are."
                )


def _columns(run: RunConfig, name: str, path: Path) -> Findings:
    schema = schema_of(path)
    if schema is None:
        yield run.error(name, f"has {path}, which is no parquet file, or cut short.", advice="Make it again.")
        return
    # verl's reward managers read the last two by these names, whatever the configuration says.
    wanted = (run.get("data.prompt_key", "prompt"), run.get("data.reward_fn_key", "data_source"))
    missing = [
        column for column in dict.fromkeys((*wanted, "data_source", "reward_model")) if column not in schema.names
    ]
    if missing and run.get("data.custom_cls.path") is None:
        message = f"has {path.name} without the column{'s' if len(missing) > 1 else ''} {', '.join(missing)}."
        advice = "Make it with `drpo-verl data`, or set data.prompt_key and data.reward_fn_key."
        yield run.error(name, message, advice=advice)


@rule
def data_values(run: RunConfig) -> Findings:
    """In every row of the data files the prompt is messages with text, and the right answer is there and is text."""
    if run.get("prepare.data") is not None or run.get("data.custom_cls.path") is not None:
        return
    ours = is_our_reward(run)
    columns = Columns(
        prompt=str(run.get("data.prompt_key", "prompt")),
        text_answers=ours or run.get("reward.custom_reward_function.path") is None,
        whole_answers=ours,
    )
    for split in _SPLITS:
        name = f"data.{split}_files"
        schemas = {path: schema for path in parquet_files(run, split) or () if (schema := schema_of(path)) is not None}
        for path in schemas:
            for fault in faults(path, columns):
                yield run.error(name, f"has {path}, {fault}", advice=fault.remedy)
        yield from _joined(run, name, schemas)


def _joined(run: RunConfig, name: str, schemas: dict[Path, pa.Schema]) -> Findings:
    """An error where datasets, with which verl reads the files, does not join their columns."""
    if len(set(schemas.values())) < 2:
        return
    from datasets import Dataset, Features, concatenate_datasets

    of_nulls = {}  # datasets leaves empty ones out
    for path, schema in schemas.items():
        features = Features.from_arrow_schema(schema)
        of_nulls[path] = Dataset.from_dict({column: [None] for column in features}, features=features)
    first, *others = of_nulls
    for path in others:
        try:
            concatenate_datasets([of_nulls[first], of_nulls[path]])
        except ValueError:
            common = [field.name for field in schemas[path] if field.name in schemas[first].names]
            columns = [column for column in common if schemas[path].field(column) != schemas[first].field(column)]
            message = f"has {first.name} and {path.name}, whose columns {', '.join(columns)} are of different types: "
            yield run.error(name, f"{message}verl can not join them.", advice="Write each column with one type.")


@rule
def data_rows(run: RunConfig) -> Findings:
    """The rows of the data are enough for a rollout, and for the steps that are asked for; validation has some."""
    train, val = (rows_of(run, split) for split in _SPLITS)
    if train is not None:
        if train.most < run.prompts:
            yield _no_rollout(run, train)
        else:
            yield from _too_few_steps(run, train)
    if val is not None:
        yield from _validation(run, val)


@rule
def prompt_lengths(run: RunConfig) -> Findings:
    """No prompt of the data is longer than the rollout takes, which would cut off its beginning."""
    if run.get(FILTER, False) or run.get("prepare.data") is not None:
        return
    name, limit = "data.max_prompt_length", run.prompt_length
    if run.get(name) != limit:
        name = f"{ROLLOUT}.prompt_length"
    for split in _SPLITS:
        cut = lengths_above(run, split, limit)
        if cut:
            message = (
                f"is less than {len(cut):,} of the prompts in data.{split}_files have tokens, and {FILTER} is off: "
            )
            message += "verl cuts off their beginning, and samples answers to the rest."
            yield run.warning(name, message, f"{name}={cut[-1]}", f"{FILTER}=True")


def _source(run: RunConfig, split: str) -> str:
    return f"prepare.data.n_{split}" if run.get("prepare.data") is not None else f"data.{split}_files"


def _no_rollout(run: RunConfig, rows: Rows) -> Finding:
    # The largest rollout of whole mini-batches that so many rows are enough for.
    smaller = rows.most // (run.mini_batch * run.sync_step) * run.mini_batch * run.sync_step
    remedies = [_with_epochs(run, f"data.train_batch_size={smaller}", rows.most, smaller)] if smaller else []
    short = rows.total - len(rows.too_long)
    end = f"less than the {run.prompts} prompts of a rollout: verl drops an incomplete one, so there is no step."
    if rows.selected < run.prompts <= short:
        name, message = "data.train_max_samples", f"rows are {end}"
        return run.error(name, message, _with_epochs(run, f"{name}=-1", short), *remedies)
    if rows.too_long and rows.total >= run.prompts:
        name = "data.max_prompt_length"
        message = f"leaves {short:,} of the {rows.total:,} prompts ({FILTER}=True), {end}"
        longer = f"{name}={rows.too_long[run.prompts - short - 1]}"
        return run.error(name, message, _with_epochs(run, longer, run.prompts), *remedies)
    name = _source(run, "train")
    if name == "data.train_files":
        return run.error(name, f"has {rows.total} rows, {end}", *remedies, advice="Or train on more.")
    return run.error(name, f"problems are {end}", _with_epochs(run, f"{name}={run.prompts}", run.prompts), *remedies)


def _with_epochs(run: RunConfig, override: str, rows: int, prompts: int | None = None) -> str:
    """An override, with as many epochs as the steps that are asked for then take."""
    total, of_an_epoch = run.get(_STEPS), rows // (prompts or run.prompts)
    enough = not is_whole(total, 1) or total <= of_an_epoch * run.whole(_EPOCHS)
    return override if enough else f"{override} {_EPOCHS}={math.ceil(total / of_an_epoch)}"


def _too_few_steps(run: RunConfig, rows: Rows) -> Findings:
    total, of_an_epoch, epochs = run.get(_STEPS), rows.most // run.prompts, run.whole(_EPOCHS)
    steps = of_an_epoch * epochs
    if not is_whole(total, 1) or total <= steps:
        return
    why = f"{rows.most:,} rows are {of_an_epoch:,} rollout{'s' if of_an_epoch > 1 else ''} of {run.prompts} prompts"
    if rows.selected < rows.total:
        why += f" (data.train_max_samples={rows.selected})"
    if rows.most < rows.selected:
        why += f" (at least {len(rows.too_long):,} prompts are above data.max_prompt_length, and filtered out)"
    message = f"is more than the {steps:,} steps that the data is enough for: {why}, and {_EPOCHS}={epochs}. verl "
    message += "would end there without saving or validating, as if all were done."
    yield run.error(_STEPS, message, f"{_EPOCHS}={math.ceil(total / of_an_epoch)}", f"{_STEPS}={steps}")


def _validation(run: RunConfig, rows: Rows) -> Findings:
    name = "data.max_prompt_length"
    if rows.total == 0:
        source = _source(run, "val")
        remedies = [f"{source}=256"] if source != "data.val_files" else []
        yield run.error(source, "has no problem to validate on, and verl stops.", *remedies, advice="Add some.")
    elif rows.too_long:
        left = rows.total - len(rows.too_long)
        message = f"leaves out {len(rows.too_long):,} of the {rows.total:,} prompts to validate on "
        message += f"({FILTER}=True), " + (
            f"and the accuracy is that of the other {left:,}." if left else "so that there is none, and verl stops."
        )
        yield (run.warning if left else run.error)(name, message, f"{name}={rows.too_long[-1]}")
