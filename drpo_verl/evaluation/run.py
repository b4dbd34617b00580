"""An evaluation from beginning to end."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from drpo_verl.data.source import sha256
from drpo_verl.data.write import progress_bar
from drpo_verl.engine import process
from drpo_verl.engine.device import device_type, engine_environment, require_memory_share
from drpo_verl.errors import UserError
from drpo_verl.evaluation import report
from drpo_verl.evaluation.estimators import Estimate, mean_over_problems, pass_at_k
from drpo_verl.evaluation.problems import Problem, read
from drpo_verl.evaluation.settings import Settings
from drpo_verl.models.resolve import resolve
from drpo_verl.run_folder.environment import describe_environment

RESULT_FILE, SAMPLES_FILE, TEXT_FILE, LOG_FILE = "eval.json", "samples.jsonl", "eval.txt", "eval.log"
_THREADS = 4


@dataclass(frozen=True)
class Response:
    """One scored response.

    Attributes:
        text: the response as text.
        tokens: number of its tokens.
        truncated: whether it reached the length of the longest response.
        score: the reward, in [0, 1].
    """

    text: str
    tokens: int
    truncated: bool
    score: float


def run(settings: Settings, out: Path, console: Console) -> dict[str, Any]:
    """Sample and score responses, and write the result into a folder as JSON, text and samples.

    Args:
        settings: what to evaluate.
        out: the folder; created if absent, and files of an earlier evaluation in it are replaced.
        console: where the table is printed.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: something is missing or fails; the message has the remedy.
    """
    require_memory_share(settings)
    problems = read(settings.data)
    try:  # before anything is sampled
        import drpo_verl.rewards.reward  # noqa: F401
    except ImportError as error:
        raise UserError(f"the responses can not be scored: {error}") from error
    with console.status("looking for the model"):
        model = resolve(settings.model)
    out.mkdir(parents=True, exist_ok=True)
    log = out / LOG_FILE
    log.unlink(missing_ok=True)
    with progress_bar(console) as progress:
        sampled = _sample(settings, problems, model, log, progress)
        responses = _score(problems, sampled, progress)
    result = {
        "model": settings.model,
        "model_folder": model,
        "data": {"file": str(settings.data), "sha256": sha256(settings.data)},
        "results": summarise(problems, responses, settings.k, settings.seed),
        "settings": {**asdict(settings), "data": str(settings.data)},
        "versions": describe_environment(),
    }
    with (out / SAMPLES_FILE).open("w") as file:
        for problem, of_problem in zip(problems, responses, strict=True):
            line = {**asdict(problem), "responses": [asdict(response) for response in of_problem]}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    (out / RESULT_FILE).write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    with (out / TEXT_FILE).open("w") as text:
        report.show(result, Console(file=text, width=110))
    report.show(result, console)
    return result


def summarise(
    problems: Sequence[Problem], responses: Sequence[Sequence[Response]], k: int, seed: int
) -> dict[str, dict[str, Any]]:
    """Compute avg@k, pass@1, 2, 4, ..., k with their intervals, and the responses' length, by data source.

    Args:
        problems: the problems of all data sources.
        responses: at least k responses to each problem.
        k: number of samples of each row.
        seed: seed of the intervals.
    """
    results = {}
    for source in dict.fromkeys(problem.data_source for problem in problems):
        by_problem = [r for problem, r in zip(problems, responses, strict=True) if problem.data_source == source]
        right = [sum(response.score >= 1 for response in group) for group in by_problem]
        everything = [response for group in by_problem for response in group]
        mean_scores = [sum(response.score for response in group) / len(group) for group in by_problem]
        figures: dict[str, Estimate] = {f"avg@{k}": mean_over_problems(mean_scores, seed=seed)}
        for at in sorted({2**power for power in range(k.bit_length())} | {k}):
            values = [pass_at_k(len(group), count, at) for group, count in zip(by_problem, right, strict=True)]
            figures[f"pass@{at}"] = mean_over_problems(values, seed=seed)
        results[source] = {
            "problems": len(by_problem),
            "samples": len(everything),
            **{name: asdict(estimate) for name, estimate in figures.items()},
            "mean_tokens": sum(response.tokens for response in everything) / len(everything),
            "truncated": sum(response.truncated for response in everything) / len(everything),
        }
    return results


def _sample(
    settings: Settings, problems: Sequence[Problem], model: str, log: Path, progress: Progress
) -> list[list[dict[str, Any]]]:
    device = device_type()
    samples = [problem.rows * settings.k for problem in problems]
    job = {
        **asdict(settings),
        "model": model,
        "device": device,
        "prompts": [problem.prompt for problem in problems],
        "samples": samples,
    }
    bar = progress.add_task(f"sampling {sum(samples):,} responses on {device}", total=sum(samples))
    with tempfile.NamedTemporaryFile("r", prefix="drpo-verl-eval-") as finished:

        def watch() -> None:
            finished.seek(0)
            if written := finished.read():
                progress.update(bar, completed=float(written))

        responses: list[list[dict[str, Any]]] = process.run(
            f"{__package__}.sample", {**job, "progress": finished.name},
            task=f"MODEL={settings.model!r}", log=log, variables=engine_environment(device, model), watch=watch,
        )  # fmt: skip
    progress.update(bar, completed=sum(samples))
    return responses


def _score(
    problems: Sequence[Problem], sampled: Sequence[Sequence[dict[str, Any]]], progress: Progress
) -> list[list[Response]]:
    from drpo_verl.rewards.judge import JudgeError
    from drpo_verl.rewards.reward import compute_score

    pairs = [(problem, response) for problem, group in zip(problems, sampled, strict=True) for response in group]
    bar = progress.add_task("scoring", total=len(pairs))

    def score(pair: tuple[Problem, dict[str, Any]]) -> Response:
        problem, response = pair
        value = compute_score(problem.data_source, response["text"], problem.ground_truth, problem.extra_info)
        progress.advance(bar)
        return Response(**response, score=value)

    try:
        with ThreadPoolExecutor(_THREADS) as pool:
            scored = iter(list(pool.map(score, pairs)))
    except (ValueError, ImportError, JudgeError) as error:
        raise UserError(f"the problems can not be scored: {error}") from error
    return [[next(scored) for _ in group] for group in sampled]
