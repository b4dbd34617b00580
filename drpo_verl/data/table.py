"""The papers' data sets: where each comes from, and what is made of it.

No hub could be reached where this was written. This was verified, and in this way:

- DAPO-Math-17k's revision, file, size and sha256 are those that several public projects pin, with its 1,791,700 rows
  (17,917 problems, each about 100 times, by accident, as its authors said) and its columns: `data_source`, `prompt`
  (messages), `ability`, `reward_model` {ground_truth, style}, `extra_info` {index: string}. Its prompts ask for a last
  line "Answer: ...". 17,917 is the count by `extra_info.index`; by text there are 17,398.
- DPAO_filter's folders `train/` and `test/` and the names `aime24.parquet` and `aime25.parquet` are in public programs
  that read it, with the same columns; they also say that `extra_info` differs between its files, so it is not read.
  The names of the files in `train/`, a revision and a hash were not to be found, nor whether its prompts ask for a box.
- Sanity-Test-R1D-1.5B's `train/math_1460.parquet` (246 kB) is on its hub page; programs that use it name
  `test/aime_2024.parquet` and `aime_2025.parquet` and the same columns, with prompts that ask for a box. Of its
  revision only the beginning, 97ab55a, was to be found.

So the first is pinned here, and the other two are pinned by the manifest of their first download.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class Part:
    """Files of a data set that become rows of one output.

    Attributes:
        output: "train" or "test", the name of the parquet file.
        files: a pattern of pathlib's for names of files in the repository.
        data_source: the data source of the rows, by which they are scored and reported.
        expected: the least and the largest number of problems.
        same: what two rows of the same problem have in common: their text, or `extra_info.index`.
    """

    output: Literal["train", "test"]
    files: str
    data_source: str
    expected: tuple[int, int]
    same: Literal["text", "index"] = "text"


@dataclass(frozen=True)
class Dataset:
    """A data set of the hub.

    Attributes:
        repository: name on the hub.
        parts: the files that are read, and what they become.
        revision: the commit; None for the newest.
        sha256: hashes of its files, by name, where they are known.
    """

    repository: str
    parts: tuple[Part, ...]
    revision: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


DATASETS: Mapping[str, Dataset] = {
    "dapo_math": Dataset(
        # Both papers train on it.
        "Jiawei415/DPAO_filter",
        # The papers say no more than "about 13k".
        (Part("train", "train/*.parquet", "math_dapo", (12_500, 13_999)),),
    ),
    "dapo_math_17k": Dataset(
        # A replication of DRPO trained on it.
        "BytedTsinghua-SIA/DAPO-Math-17k",
        (Part("train", "data/dapo-math-17k.parquet", "math_dapo", (17_917, 17_917), same="index"),),
        revision="65877096c24ffa7abc4e4fa5edb95cf3413a5674",
        sha256={"data/dapo-math-17k.parquet": "534375d6bb8630d22ab46a56e11f2ffec1d288d8f7d04099bc82d68948705941"},
    ),
    "aime": Dataset(
        # Both papers evaluate on it.
        "Jiawei415/DPAO_filter",
        (
            Part("test", "test/aime24.parquet", "aime24", (30, 30)),
            Part("test", "test/aime25.parquet", "aime25", (30, 30)),
        ),
    ),
    "sanity_r1d": Dataset(
        # The problems of MATH that DeepSeek-R1-Distill-Qwen-1.5B solves in 20 to 80 % of 40 tries.
        "sail/Sanity-Test-R1D-1.5B",
        (Part("train", "train/math_1460.parquet", "math", (1_460, 1_460)),),
    ),
}
