"""Top-K log-probabilities: their fields, their size, and the divergence that the actor makes of them."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor
from verl.utils import tensordict_utils
from verl.workers.config import ActorConfig
from verl.workers.utils.padding import no_padding_2_padding

from drpo_verl.adapters import logits as logits_of
from drpo_verl.adapters import top_k
from drpo_verl.adapters.actor_loss import TrustRegionLoss
from drpo_verl.adapters.config import TrustRegionLossConfig
from drpo_verl.adapters.logits import Layout
from drpo_verl.adapters.top_k import (
    DERIVATIVE,
    DIVERGENCE,
    IDS,
    LOG_PROBS,
    TopKError,
    divergence_from_logits,
    encode,
    require_divergence,
    top_k_of,
)
from drpo_verl.losses.partition import kullback_leibler, kullback_leibler_derivative, total_variation

VOCABULARY, K = 50, 8


Sample = tuple[dict[str, Tensor], Tensor, Tensor]


def _sample(prompt: int, response: int, generator: torch.Generator) -> Sample:
    """A sample's fields, mu's log-probabilities at its response tokens, and those tokens."""
    log_mu = torch.randn(response, VOCABULARY, generator=generator, dtype=torch.float64).mul(2).log_softmax(-1)
    tokens = torch.multinomial(log_mu.exp(), 1, generator=generator)
    ids = torch.cat([tokens, log_mu.topk(K).indices], dim=-1)
    return encode(prompt, ids.numpy(), log_mu.gather(-1, ids).numpy()), log_mu, tokens


def _jagged(tensors: list[Tensor]) -> Tensor:
    return torch.nested.as_nested_tensor(tensors, layout=torch.jagged)


def _batch(lengths: list[tuple[int, int]], samples: list[Sample]) -> TensorDict:
    """The fields that verl's actor has of those samples."""
    prompts = [torch.zeros(prompt, dtype=torch.int64) for prompt, _ in lengths]
    responses = [tokens.squeeze(1) for _, _, tokens in samples]
    fields = {
        "prompts": prompts,
        "responses": responses,
        "response_mask": [torch.ones_like(response) for response in responses],
        "input_ids": [torch.cat(pair) for pair in zip(prompts, responses, strict=True)],
        **{name: [sample[name] for sample, _, _ in samples] for name in (IDS, LOG_PROBS)},
    }
    return TensorDict({name: _jagged(tensors) for name, tensors in fields.items()}, batch_size=len(lengths))


def test_rows_of_other_tokens_are_noticed_but_for_padding() -> None:
    generator = torch.Generator().manual_seed(1)
    lengths = [(3, 5), (2, 4)]
    samples = [_sample(*length, generator) for length in lengths]
    logits = torch.randn(1, 14, VOCABULARY, generator=generator)
    data = _batch(lengths, samples)
    assert divergence_from_logits(logits, data, total_variation)[DIVERGENCE].isfinite().all()
    data["responses"].values()[6] += 1  # the second token of the second sample is another now
    found = divergence_from_logits(logits, data, total_variation)[DIVERGENCE]
    assert found.isnan().nonzero().tolist() == [[0, 8 + 2 + 1 - 1]]
    data["response_mask"].values()[6] = 0
    assert divergence_from_logits(logits, data, total_variation)[DIVERGENCE].isfinite().all()
    with pytest.raises(TopKError, match="those of other tokens"):
        require_divergence(math.nan)
    require_divergence(0.0)


@pytest.mark.parametrize("divergence", [total_variation, kullback_leibler])
@pytest.mark.parametrize("spread", [0.0, 1.0, 5.0])
def test_over_the_whole_vocabulary_two_equal_policies_do_not_differ(
    divergence: top_k.Divergence, spread: float
) -> None:
    # Rounded to float16, the listed probabilities do not add up to 1; the rest that is sent along does.
    generator = torch.Generator().manual_seed(0)
    scores = spread * torch.randn(64, 19, generator=generator)
    log_mu = scores.double().log_softmax(-1)
    tokens = torch.randint(19, (64, 1), generator=generator)
    ids = torch.cat([tokens, log_mu.topk(19).indices], dim=-1)
    fields = encode(1, ids.numpy(), log_mu.gather(-1, ids).numpy())
    data = _batch([(1, 64)], [(fields, log_mu, tokens)])
    logits = torch.cat([scores, torch.zeros(1, 19)])[None]  # the last row predicts nothing
    assert divergence_from_logits(logits, data, divergence)[DIVERGENCE][0, :64].max() < 5e-4


@pytest.mark.parametrize("shards", [1, 2])
def test_the_derivative_beside_it_is_that_of_the_sampled_tokens(shards: int) -> None:
    """Over the tokens listed and a tail that is spread evenly, as the paper has it; here in float64."""
    generator = torch.Generator().manual_seed(2)
    _, log_mu, tokens = sample = _sample(1, 32, generator)
    logits = torch.cat([torch.randn(32, VOCABULARY, generator=generator), torch.zeros(1, VOCABULARY)])[None]
    layout = Layout(shard=logits_of.Shard(count=shards))  # the other shards hold as many tokens, of no probability
    found = divergence_from_logits(
        logits,
        _batch([(1, 32)], [sample]),
        kullback_leibler,
        layout,
        partial(kullback_leibler_derivative, tail="uniform"),
    )
    mu, pi = log_mu.exp(), logits[0, :32].double().softmax(-1)
    for t, token in enumerate(tokens.squeeze(1).tolist()):
        listed = {*log_mu[t].topk(K).indices.tolist(), token}
        rest_mu, rest_pi = (1 - sum(each[t, i] for i in listed) for each in (mu, pi))
        expected = pi[t, token] - mu[t, token] + sum(pi[t, i] * (mu[t, i] - pi[t, i]) for i in listed)
        expected += rest_pi * (rest_mu - rest_pi) / (shards * VOCABULARY - len(listed))
        assert found[DERIVATIVE][0, t].item() == pytest.approx(expected.item(), abs=5e-4)
    assert found[DERIVATIVE].shape == found[DIVERGENCE].shape


def test_the_actors_loss_masks_by_the_predicted_direction() -> None:
    generator = torch.Generator().manual_seed(3)
    samples = [_sample(*lengths, generator) for lengths in ((3, 20), (2, 30))]
    data = _batch([(3, 20), (2, 30)], samples)
    advantages = [torch.randn(length, generator=generator) for length in (20, 30)]
    log_mu = [log_mu.gather(1, tokens).squeeze(1).float() for _, log_mu, tokens in samples]
    for name, rows in (("advantages", advantages), ("rollout_log_probs", log_mu), ("old_log_probs", log_mu)):
        data[name] = _jagged(rows)
    tensordict_utils.assign_non_tensor(data, dp_size=1, batch_num_tokens=50, global_batch_size=2)
    settings = TrustRegionLossConfig(loss_mode="pdm", delta=0.3, top_k=K, tail="aggregated")
    loss = TrustRegionLoss(
        ActorConfig(strategy="fsdp2", rollout_n=1, ppo_micro_batch_size_per_gpu=1, policy_loss=settings)
    )

    logits = torch.randn(1, 55, VOCABULARY, generator=generator)
    found = loss(data=data, student_logits=logits)
    offsets = data["input_ids"].offsets()
    following = data["input_ids"].values().roll(-1)
    log_pi = logits[0].log_softmax(-1).gather(1, following[:, None]).squeeze(1)
    output = {name: torch.nested.nested_tensor_from_jagged(each[0], offsets) for name, each in found.items()}
    output["log_probs"] = torch.nested.nested_tensor_from_jagged(log_pi, offsets).requires_grad_()
    (gradient,) = torch.autograd.grad(loss(output, data)[0], output["log_probs"])
    rows = torch.cat([torch.arange(2, 22), torch.arange(24, 54)])  # those that predict a token of a response
    sense = torch.cat(advantages) * found[DERIVATIVE][0, rows]
    is_masked = (found[DIVERGENCE][0, rows] > 0.3) & (sense > 0)
    assert 5 < is_masked.sum() < 45
    assert torch.equal(gradient.values()[rows] == 0, is_masked)


@pytest.mark.parametrize("divergence", [total_variation, kullback_leibler])
def test_the_actors_divergence_is_that_of_the_sampled_tokens(
    divergence: top_k.Divergence, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logits_of, "_CHUNK_ELEMENTS", 3 * VOCABULARY)  # several chunks
    generator = torch.Generator().manual_seed(0)
    lengths = [(3, 5), (1, 2), (4, 1)]
    samples = [_sample(*length, generator) for length in lengths]
    data = _batch(lengths, samples)
    logits = 3 * torch.randn(1, sum(p + r for p, r in lengths), VOCABULARY, generator=generator)

    result = divergence_from_logits(logits.bfloat16(), data, divergence)[DIVERGENCE]
    assert result.dtype == torch.float32 and result.shape == logits.shape[:2] and not result.requires_grad

    log_pi, offset, expected = logits.bfloat16().double().squeeze(0).log_softmax(-1), 0, []
    for (prompt, response), (_, log_mu, tokens) in zip(lengths, samples, strict=True):
        # The logits at t are the distribution of token t + 1.
        there = log_pi[offset + prompt - 1 : offset + prompt + response - 1]
        top = log_mu.topk(K).indices
        ids = torch.cat([tokens, top], dim=-1)
        listed = torch.cat([torch.ones_like(tokens), top != tokens], dim=-1).double()
        expected.append(divergence(log_mu.gather(-1, ids), there.gather(-1, ids), listed))
        offset += prompt + response
    # And verl's shift brings them to the response tokens.
    padded = no_padding_2_padding(result.squeeze(0), data)
    for row, exact in zip(padded, expected, strict=True):
        torch.testing.assert_close(row[: len(exact)].double(), exact, rtol=1e-2, atol=5e-4)  # float16 on the way


@pytest.mark.parametrize("divergence", [total_variation, kullback_leibler])
def test_rows_that_are_padded_and_elsewhere_have_the_divergence_of_their_token(divergence: top_k.Divergence) -> None:
    generator = torch.Generator().manual_seed(2)
    lengths = [(3, 5), (1, 2), (4, 1)]
    data = _batch(lengths, [_sample(*length, generator) for length in lengths])
    data["responses"].values()[6] += 1  # a row of another token, which has to stay one
    logits = torch.randn(1, 16, VOCABULARY, generator=generator)
    plain = divergence_from_logits(logits, data, divergence)[DIVERGENCE]
    assert int(plain.isnan().sum()) == 1

    backwards = Layout(rows=lambda tokens: torch.nested.to_padded_tensor(tokens, 0.0, (3, 9)).flip(1))
    padded = backwards.rows(torch.nested.nested_tensor_from_jagged(logits[0], offsets=data["input_ids"].offsets()))
    found = divergence_from_logits(padded, data, divergence, backwards)[DIVERGENCE]
    positions = backwards.positions(16, data["input_ids"].offsets())
    assert found.shape == positions.shape == (3, 9) and int((positions < 0).sum()) == 27 - 16
    torch.testing.assert_close(found[positions >= 0], plain[0, positions[positions >= 0]], equal_nan=True)


def test_a_layout_that_is_not_the_engines_is_refused() -> None:
    generator = torch.Generator().manual_seed(3)
    data = _batch([(3, 5)], [_sample(3, 5, generator)])
    with pytest.raises(TopKError, match=r"laid out the logits as \[1, 16\] and not as \[1, 8\].*pad_to_length=True"):
        divergence_from_logits(torch.zeros(1, 16, VOCABULARY), data, total_variation)


def test_128_bytes_a_token_at_20() -> None:
    fields = encode(1, np.arange(21)[None], np.full((1, 21), -3.0))
    rows = fields[IDS].shape[0]
    assert sum(field.element_size() * field.numel() for field in fields.values()) / rows == 128


def test_the_sampled_token_is_listed_once_and_minus_infinity_is_no_probability() -> None:
    fields = encode(2, np.array([[7, 7, 3]]), np.array([[-0.1, -0.1, -np.inf]]))
    assert fields[IDS].tolist() == [[-1, -1, -1], [7, -1, 3], [-1, -1, -1]]
    assert fields[LOG_PROBS][1, -1].exp().item() == pytest.approx(1 - math.exp(-0.1), abs=2e-4)
    assert fields[LOG_PROBS].isfinite().all() and fields[LOG_PROBS][1, 2].exp() == 0


def test_a_rounded_log_probability_is_within_what_is_said() -> None:
    p = np.linspace(1e-4, 1.0, 20_000)[:, None]
    fields = encode(1, np.zeros((len(p), 1), dtype=np.int64), np.log(p))
    assert np.abs(fields[LOG_PROBS][:-1].double().exp().numpy() - np.hstack([p, 1 - p])).max() < 2e-4


@pytest.mark.parametrize("rows", [None, [2, 3]])
def test_samples_without_them_are_refused_with_their_number(rows: list[int] | None) -> None:
    data = TensorDict({"input_ids": _jagged([torch.zeros(4), torch.zeros(5)])}, batch_size=2)
    if rows is not None:
        for name in (IDS, LOG_PROBS):
            data[name] = _jagged([torch.zeros(length, K) for length in rows])
    with pytest.raises(TopKError, match=f"{sum(rows or [0])} rows of Top-K .* for 9 tokens .*vLLM rollout"):
        divergence_from_logits(torch.zeros(1, 9, VOCABULARY), data, total_variation)


def test_k_is_read_from_the_configuration_of_the_rollout() -> None:
    assert top_k_of(OmegaConf.create({"custom": {"drpo_verl": {"top_k": 20}}})) == 20
    assert top_k_of(OmegaConf.create({"custom": None})) is None and top_k_of({}) is None
    assert top_k_of({"custom": {"somebody_else": 1}}) is None
