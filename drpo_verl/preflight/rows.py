"""How many rows of its data a run is left with, as far as files that exist tell, as verl's dataset counts them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from drpo_verl.configuration.numbers import is_whole
from drpo_verl.configuration.run_config import RunConfig
from drpo_verl.configuration.sections import MODEL

if TYPE_CHECKING:
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

FILTER = "data.filter_overlong_prompts"
GENERATED = "drpo_verl.rewards.arithmetic.write_parquet"
"""What makes the CPU experiments' data, as many rows as it is told."""
_TOKENIZED = 4_000
"""As many prompts are tokenised, at most: 6 s for prompts of 600 tokens on one core."""
_BATCH = 8192
_TEMPLATE_BYTES = 256
"""What a chat template adds, generously. Tokens are bytes or more, so that shorter prompts need not be tokenised."""


@dataclass(frozen=True)
class Rows:
    """Rows of the training or validation data.

    Attributes:
        total: rows of the files, or that are generated.
        selected: rows that `max_samples` leaves of them.
        too_long: lengths, in tokens and ascending, of the prompts that are known to be above `data.max_prompt_length`
            and are filtered out.
    """

    total: int
    selected: int
    too_long: tuple[int, ...] = ()

    @property
    def most(self) -> int:
        """How many rows the run has, at most: which of them are selected, and all that are too long, is not known."""
        return min(self.selected, self.total - len(self.too_long))


def rows_of(run: RunConfig, split: str) -> Rows | None:
    """Count the rows of a run's data; None where they are not known here.

    Args:
        run: the configuration.
        split: "train" or "val".
    """
    too_long: tuple[int, ...] = ()
    if run.get("prepare.data") is not None:
        generated = run.get(f"prepare.data.n_{split}")
        if run.get("prepare.data._target_") != GENERATED or not is_whole(generated, 0):
            return None
        total = int(generated)
    else:
        paths = parquet_files(run, split)
        if paths is None or run.get("data.custom_cls.path") is not None:
            return None
        if any(schema_of(path) is None for path in paths):
            return None
        import pyarrow.parquet as pq

        total = sum(pq.read_metadata(path).num_rows for path in paths)
        if run.get(FILTER, False):
            too_long = lengths_above(run, split, run.whole("data.max_prompt_length"))
    selected = run.get(f"data.{split}_max_samples", -1)
    return Rows(total, min(total, selected) if is_whole(selected, 1) else total, too_long)


def parquet_files(run: RunConfig, split: str) -> list[Path] | None:
    """The data files of a run; None unless all are parquet files on this machine."""
    files = run.get(f"data.{split}_files")
    paths = [Path(str(file)).expanduser() for file in ([files] if isinstance(files, str) else files or [])]
    return paths if paths and all(path.suffix == ".parquet" and path.is_file() for path in paths) else None


def schema_of(path: Path) -> pa.Schema | None:
    """The columns of a parquet file; None when it can not be read as one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.read_schema(path)
    except (OSError, pa.ArrowException):
        return None


def lengths_above(run: RunConfig, split: str, limit: int) -> tuple[int, ...]:
    """The lengths above a limit, in tokens and ascending, of a run's prompts: those that can be told here, in seconds.

    Args:
        run: the configuration.
        split: "train" or "val".
        limit: in tokens.
    """
    paths = parquet_files(run, split)
    source = run.get(f"{MODEL}.tokenizer_path", run.get(f"{MODEL}.path"))
    changed = ("tool_config_path", "function_tool_path", "chat_template_func", "custom_cls.path")
    # Tools add descriptions to the prompts; a policy that is yet to be made has no tokenizer yet.
    if any(run.get(f"data.{name}") for name in changed) or None in (paths, source) or run.get("prepare.policy"):
        return ()
    arguments = run.get("data.apply_chat_template_kwargs", {})
    others = tuple(str(run.get(f"data.{name}_key", f"{name}s")) for name in ("image", "video", "audio"))
    return _lengths_above(
        limit, str(source), run.get(f"{MODEL}.custom_chat_template"), str(run.get("data.prompt_key", "prompt")),
        tuple((path, path.stat().st_mtime_ns) for path in paths or ()), tuple(sorted(arguments.items())), others,
    )  # fmt: skip


@lru_cache(maxsize=16)  # several rules ask
def _lengths_above(
    limit: int,
    source: str,
    template: str | None,
    column: str,
    files: tuple[tuple[Path, int], ...],
    arguments: tuple[tuple[str, Any], ...],
    others: tuple[str, ...],
) -> tuple[int, ...]:
    """The lengths above a limit, of as many prompts as are tokenised; verl drops what its tokenizer can not take."""
    import pyarrow.parquet as pq

    tokenizer = None
    lengths: list[int] = []
    left = _TOKENIZED
    options = {key: value for key, value in arguments if key not in ("tokenize", "return_dict", "return_tensors")}
    for path, _ in files:
        schema = schema_of(path)
        if schema is None or column not in schema.names or any(other in schema.names for other in others):
            continue
        for batch in pq.ParquetFile(path).iter_batches(batch_size=_BATCH, columns=[column]):
            prompts = _longer(batch.column(0), limit - _TEMPLATE_BYTES)[:left]
            if not prompts:
                continue
            tokenizer = tokenizer or _tokenizer(source, template)
            if tokenizer is None:
                return ()
            left -= len(prompts)
            lengths += [length for length in _lengths(tokenizer, prompts, options, limit) if length > limit]
            if not left:
                return tuple(sorted(lengths))
    return tuple(sorted(lengths))


def _longer(prompts: pa.Array, size: int) -> list[Any]:
    """The prompts of a batch, as lists of messages, whose contents have more bytes than so many."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = prompts.type
    if not (
        pa.types.is_list(kind)
        and pa.types.is_struct(kind.value_type)
        and kind.value_type.get_field_index("content") >= 0
    ):
        return []  # which data_values says
    content = pc.struct_field(pc.list_flatten(prompts), "content")
    if not pa.types.is_string(content.type):
        return []
    parents = pc.list_parent_indices(prompts).to_numpy()
    bytes_of_each = pc.fill_null(pc.binary_length(content), 0).to_numpy(zero_copy_only=False)
    long = np.flatnonzero(np.bincount(parents, weights=bytes_of_each, minlength=len(prompts)) > size)
    whole: list[Any] = prompts.take(pa.array(long)).to_pylist()
    return whole


def _tokenizer(source: str, template: str | None) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer, if it is on this machine and needs no code of its own, which is not run."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(Path(source).expanduser(), local_files_only=True)
    except Exception:  # of many kinds
        return None
    if template is not None:
        tokenizer.chat_template = template
    return tokenizer


def _lengths(tokenizer: PreTrainedTokenizerBase, prompts: list[Any], options: dict[str, Any], limit: int) -> list[int]:
    """The tokens of prompts as verl's dataset counts them; one above the limit where the template can not take one."""
    from verl.utils.tokenizer import normalize_token_ids

    def encode(messages: list[Any]) -> Any:
        return tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=False, **options
        )

    try:
        return [len(ids) for ids in encode(prompts)]  # at once, which is faster by far
    except Exception:  # of any of them
        lengths = []
    for messages in prompts:
        try:
            lengths.append(len(normalize_token_ids(encode(messages))))
        except Exception:  # verl leaves the prompt out
            lengths.append(limit + 1)
    return lengths
