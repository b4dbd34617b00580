"""A probe from beginning to end."""

from __future__ import annotations

import json
import os
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from drpo_verl.engine import process
from drpo_verl.engine.device import device_type, engine_environment, require_memory_share
from drpo_verl.errors import UserError
from drpo_verl.models.resolve import resolve
from drpo_verl.probe import mismatch, prompts
from drpo_verl.probe.job import Job
from drpo_verl.probe.settings import Settings
from drpo_verl.probe.tokens import NOT_LISTED, Samples, Scores
from drpo_verl.run_folder.environment import describe_environment

if TYPE_CHECKING:
    from drpo_verl.probe.methods import Method

RESULT_FILE, PICTURE_FILE, TEXT_FILE, LOG_FILE = "probe.json", "probe.png", "probe.txt", "probe.log"


def run(settings: Settings, out: Path, console: Console) -> dict[str, Any]:
    """Sample, score and compare, and write the result into a folder as JSON, text and a picture.

    Args:
        settings: what to measure.
        out: the folder; created if absent, and files of an earlier probe in it are replaced.
        console: where the report is printed.

    Returns:
        The content of the JSON file.

    Raises:
        UserError: something is missing or fails; the message has the remedy.
    """
    from drpo_verl.probe import picture, report

    require_memory_share(settings)
    from_file = prompts.read(settings)  # before the model, which may take minutes to be built
    model = resolve(settings.model)
    messages = from_file or prompts.arithmetic(settings, model)
    device = device_type()
    if settings.weights and device != "cpu":
        message = f"--weights={settings.weights!r} is an emulation for CPUs, and the device here is {device}: "
        raise UserError(message + "take --quantization, or VERL_PLATFORM=cpu.")
    # This process imports verl, which looks for a platform; it has to find the same one as the engines' processes.
    os.environ.update(variables := engine_environment(device, model))
    from drpo_verl.probe.methods import methods

    known = methods()
    out.mkdir(parents=True, exist_ok=True)
    log = out / LOG_FILE
    log.unlink(missing_ok=True)
    seconds: dict[str, float] = {}

    def answer(module: str, activity: str, *arguments: object) -> Any:
        begin = time.monotonic()
        task = f"MODEL={settings.model!r}, {module}"
        with console.status(f"{activity}; the log is in {log}"):
            result = process.run(f"{__package__}.{module}", *arguments, task=task, log=log, variables=variables)
        seconds[module] = round(time.monotonic() - begin, 1)
        console.print(f"{activity}: {seconds[module]:.0f} s", highlight=False)
        return result

    job = Job(settings, model, device, messages, max(method.top_k or 0 for method in known))
    samples: Samples = answer("sample", f"sampling {len(messages)} x {settings.samples} with vLLM on {device}", job)
    scores: Scores = answer("score", f"scoring with the training engine on {device}", job, samples)
    require_numbers(samples, scores)
    tokens = mismatch.Tokens(samples.log_mu.astype(np.float64), scores.log_pi.astype(np.float64))
    result = {
        "model": settings.model,
        "device": device,
        "prompts": len(messages),
        "samples": len(samples.response_lengths),
        "tokens": len(samples.log_mu),
        "mismatch": mismatch.summarise(tokens),
        "by_probability": mismatch.by_probability(tokens),
        "methods": _effects(known, samples, scores),
        "suggested_delta": mismatch.suggest_delta(tokens, settings.share),
        "settings": {**asdict(settings), "prompts": str(settings.prompts) if settings.prompts else None},
        "model_folder": model,
        "seconds": seconds,
        "versions": describe_environment("numpy"),
    }
    (out / RESULT_FILE).write_text(json.dumps(result, indent=2) + "\n")
    picture.draw(tokens, result, out / PICTURE_FILE)
    with (out / TEXT_FILE).open("w") as file:
        report.show(result, Console(file=file, width=110))
    report.show(result, console)
    return result


def require_numbers(samples: Samples, scores: Scores) -> None:
    """Refuse log-probabilities that are NaN or infinite: every figure made of them would be, too.

    Raises:
        UserError: there are some; the message says how many, and in which engine.
    """
    for engine, option, values in (
        ("rollout", "--dtype", samples.log_mu),
        ("training", "--train-dtype", scores.log_pi),
    ):
        broken = int((~np.isfinite(values)).sum())
        if broken:
            raise UserError(
                f"{broken} of {values.size} log-probabilities of the {engine} engine are NaN or infinite: "
                f"training would be refused on them. Try another {option}."
            )


def _effects(known: list[Method], samples: Samples, scores: Scores) -> dict[str, Any]:
    import torch

    from drpo_verl.probe.methods import Partition, Responses, measure

    partition = Partition(
        log_mu=torch.from_numpy(samples.top_log_mu),
        log_pi=torch.from_numpy(scores.top_log_pi),
        listed=torch.from_numpy(samples.top_ids != NOT_LISTED).float(),
        vocabulary=scores.vocabulary,
    )
    responses = Responses(
        log_mu=torch.from_numpy(samples.log_mu),
        log_pi=torch.from_numpy(scores.log_pi),
        partition=partition,
        lengths=samples.response_lengths.tolist(),
    )
    return measure(known, responses)
