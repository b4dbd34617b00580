"""What both processes make of tokens, and how they are started, told and listened to."""

from __future__ import annotations

from dataclasses import asdict, replace
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM

from drpo_verl.engine import process
from drpo_verl.errors import UserError
from drpo_verl.probe import run as probe
from drpo_verl.probe import sample, score
from drpo_verl.probe.job import Job
from drpo_verl.probe.run import require_numbers
from drpo_verl.probe.settings import Settings, describe_rollout, vllm_quantization
from drpo_verl.probe.tokens import NOT_LISTED, Samples, Scores

VOCABULARY = 50


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def samples_of(lengths: list[tuple[int, int]], top_k: int = 3) -> Samples:
    generator = np.random.default_rng(0)
    ids = [generator.integers(0, VOCABULARY, prompt + response) for prompt, response in lengths]
    sampled = np.concatenate([each[prompt:] for each, (prompt, _) in zip(ids, lengths, strict=True)])
    others = generator.integers(0, VOCABULARY, (len(sampled), top_k))
    return Samples(
        ids=np.concatenate(ids),
        prompt_lengths=np.array([prompt for prompt, _ in lengths]),
        response_lengths=np.array([response for _, response in lengths]),
        log_mu=np.zeros(len(sampled), np.float32),
        top_ids=np.concatenate([sampled[:, None], others], axis=1),
        top_log_mu=np.zeros((len(sampled), top_k + 1), np.float32),
    )


LENGTHS = [(3, 4), (6, 1), (2, 9), (5, 5)]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_scoring_in_batches_is_scoring_one_by_one(
    folder: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = samples_of(LENGTHS)
    samples.top_ids[1, 2] = NOT_LISTED
    model = score.load(str(folder), "float32", "cpu")
    expected, start = [], 0
    for prompt, response in LENGTHS:
        ids = torch.from_numpy(samples.ids[start : start + prompt + response])
        with torch.no_grad():
            rows = (model(ids[None]).logits[0, prompt - 1 : -1] / temperature).log_softmax(-1)
        expected.append(rows)
        start += prompt + response
    wanted = torch.cat(expected).gather(1, torch.from_numpy(samples.top_ids).clamp(min=0)).numpy()
    wanted[1, 2] = 0.0
    # Two sequences to a batch, and three rows to a chunk.
    monkeypatch.setattr(score, "_BATCH_LOGITS", 25 * VOCABULARY)
    monkeypatch.setattr(score, "_CHUNK_LOGITS", 3 * VOCABULARY)
    scores = score.log_probs(model, samples, "float32", temperature)
    np.testing.assert_allclose(scores.top_log_pi, wanted, atol=2e-6)
    np.testing.assert_array_equal(scores.log_pi, scores.top_log_pi[:, 0])


def test_batches_hold_every_sample_once_and_keep_to_their_size() -> None:
    samples = samples_of([*LENGTHS, (20, 20)])
    found = list(score.batches(samples, 25))
    assert sorted(index for batch in found for index in batch.samples) == [0, 1, 2, 3, 4]
    assert all(batch.ids.numel() <= 25 or len(batch.samples) == 1 for batch in found)
    assert sum(int(batch.predicting.sum()) for batch in found) == samples.response_lengths.sum()


def test_what_vllm_answers_is_taken_apart() -> None:
    def output(ids: list[int], top: list[list[int]], log_probs: list[list[float]]) -> SimpleNamespace:
        flat = SimpleNamespace(token_ids=[*chain(*top)], logprobs=[*chain(*log_probs)])
        return SimpleNamespace(token_ids=ids, logprobs=flat)

    answers = [
        SimpleNamespace(
            prompt_token_ids=[7, 8],
            outputs=[
                output([1, 2], [[1, 1, 5], [2, 6, 7]], [[-0.1, -0.1, -3.0], [-4.0, -0.5, -1.0]]),
                output([3], [[3, 4, 3]], [[-1.0, -0.6, -1.0]]),
            ],
        )
    ]
    samples = sample._collect(answers)
    assert samples.ids.tolist() == [7, 8, 1, 2, 7, 8, 3]
    assert samples.prompt_lengths.tolist() == [2, 2] and samples.response_lengths.tolist() == [2, 1]
    assert samples.top_ids.tolist() == [[1, NOT_LISTED, 5], [2, 6, 7], [3, 4, NOT_LISTED]]
    assert samples.log_mu.tolist() == pytest.approx([-0.1, -4.0, -1.0])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"dtype": "bf15"}, "--dtype='bf15' is not one of bfloat16, float16, float32"),
        ({"train_dtype": "fp8"}, "--train-dtype='fp8' is not one of"),
        ({"weights": "int5"}, "--weights='int5' is not one of fp8, int8, int4, int3"),
        ({"weights": "int4", "quantization": "fp8"}, "--weights='int4' leaves no room for --quantization=fp8"),
        ({"head_dtype": "float16"}, "--head-dtype='float16' can only be float32"),
        ({"count": 0}, "--count=0 must be at least 1"),
        ({"max_tokens": 0}, "--max-tokens=0 must be at least 1"),
        ({"temperature": 0.0}, r"--temperature=0\.0 must be above 0"),
        ({"top_p": 1.5}, r"--top-p=1\.5 must be above 0 and at most 1"),
        ({"top_k": 0}, "--top-k=0 must be at least 1, or -1"),
        ({"share": 1.0}, r"--share=1\.0 is a share"),
    ],
)
def test_settings_that_mean_nothing(setting: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        Settings("tiny", **setting)


def test_a_process_answers_or_says_why(tmp_path: Path, folder: Path) -> None:
    log = tmp_path / "probe.log"
    samples = samples_of(LENGTHS)
    job = Job(Settings("mine", train_dtype="float32"), str(folder), "cpu", [], 20)

    def run(module: str, job: Job) -> Scores:
        scores: Scores = process.run(
            f"drpo_verl.probe.{module}", job, samples, task="MODEL='mine'", log=log, variables={}
        )
        return scores

    answer, here = run("score", job), score.score(job, samples)
    np.testing.assert_allclose(answer.top_log_pi, here.top_log_pi, atol=1e-6)
    with pytest.raises(UserError, match=r"MODEL='mine': OSError: .*nowhere.*The log is in .*probe\.log"):
        run("score", replace(job, model=str(tmp_path / "nowhere")))
    assert "Traceback" in log.read_text()
    with pytest.raises(UserError, match="ended with code 1"):
        run("no_such_module", job)


def test_emulated_weights_are_for_a_cpu(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("drpo_verl.probe.run.device_type", lambda: "cuda")
    with pytest.raises(UserError, match=r"--weights='int4' is an emulation for CPUs, and the device here is cuda"):
        probe.run(Settings(str(folder), weights="int4"), tmp_path, Console())


def test_what_the_rollout_engine_computes_in_is_said_in_words() -> None:
    settings = Settings("mine", kv_cache_dtype="fp8_e4m3", weights="int4", head_dtype="float32")
    assert vllm_quantization(settings) == "emulated_int4"
    expected = "bfloat16, fp8_e4m3 KV cache, weights through int4, float32 LM head"
    assert describe_rollout(asdict(settings)) == expected


def test_log_probabilities_that_are_no_numbers() -> None:
    samples = samples_of(LENGTHS)
    fine = np.zeros(len(samples.log_mu), np.float32)
    broken = fine.copy()
    broken[:2] = np.nan, -np.inf
    require_numbers(samples, Scores(fine, fine[:, None], VOCABULARY))
    with pytest.raises(UserError, match=r"2 of 19 log-probabilities of the training engine.*--train-dtype"):
        require_numbers(samples, Scores(broken, broken[:, None], VOCABULARY))
