"""The tiny policy's tokenizer, model folder, accuracy and warm-up, with a recipe of a few steps."""

import io
import itertools
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedTokenizerFast

from drpo_verl.models.muon import Muon
from drpo_verl.models.tiny_model import (
    LongTailRecipe,
    TinyMoeRecipe,
    TinyPolicyRecipe,
    build_model,
    build_tokenizer,
    meanings,
)
from drpo_verl.models.tiny_policy import WARMUP_FILE, ensure_tiny_policy
from drpo_verl.models.warm_up import encode_problems, measure_accuracy, spell
from drpo_verl.rewards.arithmetic import Problem, make_problems

MICRO = TinyPolicyRecipe(
    hidden_size=32,
    intermediate_size=32,
    num_layers=1,
    num_heads=1,
    num_kv_heads=1,
    head_dim=32,
    target_accuracy=4e-3,  # an untrained policy has ~3e-4: some steps are needed, and few
    batch_size=32,
    n_train=64,
    n_calibration=16,
    n_val=16,
)
MICRO_MOE = TinyMoeRecipe(
    **{each.name: getattr(MICRO, each.name) for each in fields(MICRO)}, num_experts=4, expert_size=32
)
QUIET = Console(file=io.StringIO())


def warmup_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / WARMUP_FILE).read_text())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return ensure_tiny_policy(tmp_path_factory.mktemp("cache"), recipe=MICRO, console=QUIET)


def test_chat_is_one_token_per_character_and_marker(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "user", "content": "12-34"}]
    assert (
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False) == "<|user|>12-34<|assistant|>"
    )
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert tokenizer.convert_ids_to_tokens(ids) == ["<|user|>", "1", "2", "-", "3", "4", "<|assistant|>"]
    answered = [*chat, {"role": "assistant", "content": "-22"}]
    assert tokenizer.apply_chat_template(answered, return_dict=False) == [
        *ids,
        *tokenizer.convert_tokens_to_ids(["-", "2", "2", "<|eos|>"]),
    ]


def test_decoding_drops_the_end_but_keeps_a_role_marker_in_an_answer(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.decode(tokenizer("46<|eos|><|pad|>").input_ids, skip_special_tokens=True) == "46"
    assert tokenizer.decode(tokenizer("<|user|>46").input_ids, skip_special_tokens=True) == "<|user|>46"


def test_a_role_nobody_trained_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(Exception, match="roles user and assistant only"):
        tokenizer.apply_chat_template([{"role": "system", "content": "1"}])


def test_labels_cover_the_response_only(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, labels = encode_problems(tokenizer, [Problem("1+2", "3"), Problem("10-99", "-89")])
    assert ids.shape == labels.shape == (2, 11)
    assert [tokenizer.decode(row[row != -100]) for row in labels] == ["3<|eos|>", "-89<|eos|>"]
    assert tokenizer.decode(ids[0]) == "<|user|>1+2<|assistant|>3<|eos|>" + "<|pad|>" * 4


def test_accuracy_is_the_probability_of_the_right_response(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = build_model(MICRO, tokenizer).eval()
    ids, labels = encode_problems(tokenizer, [Problem("1+2", "3")])
    prompt = ids[:, :5]
    right = 1.0
    for token in tokenizer("3<|eos|>").input_ids:
        right *= model(prompt).logits[0, -1].softmax(-1)[token].item()
        prompt = torch.cat([prompt, torch.tensor([[token]])], dim=1)
    accuracy = measure_accuracy(model, ids, labels, meanings(tokenizer))
    assert accuracy.sampled == pytest.approx(right, rel=1e-4)
    assert accuracy.pass_at_8 == pytest.approx(1 - (1 - right) ** 8, rel=1e-2)  # fp32: 1 - (nearly 1)
    assert accuracy.greedy == 0.0


def test_padding_does_not_change_accuracy(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = build_model(MICRO, tokenizer).eval()
    short, long = Problem("1+2", "3"), Problem("10-99", "-89")
    meaning = meanings(tokenizer)
    alone = [measure_accuracy(model, *encode_problems(tokenizer, [p]), meaning).sampled for p in (short, long)]
    together = measure_accuracy(model, *encode_problems(tokenizer, [short, long]), meaning).sampled
    assert together == pytest.approx(sum(alone) / 2, rel=1e-4)


def test_default_recipe_is_a_model_of_millions_that_vllm_can_run(tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = TinyPolicyRecipe()
    with torch.device("meta"):
        model = build_model(recipe, tokenizer)
    assert 2e6 <= model.num_parameters() <= 6e6
    assert recipe.hidden_size % 32 == 0
    assert recipe.head_dim in (32, 64, 80, 96, 112, 128)  # vLLM 0.30's CPU attention kernels


def test_folder_is_an_ordinary_model(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    generation = GenerationConfig.from_pretrained(folder)
    config = model.config
    assert config.architectures == ["Qwen3ForCausalLM"]
    assert config.vocab_size == len(tokenizer) == model.lm_head.out_features
    assert not config.tie_word_embeddings
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    for holder in (config, generation):
        assert (holder.eos_token_id, holder.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert tokenizer.decode(tokenizer("12-34").input_ids) == "12-34"
    assert tokenizer.chat_template == build_tokenizer().chat_template


def test_warmup_stops_at_the_target_and_reports(folder: Path) -> None:
    result = warmup_of(folder)
    assert result["reached_target"]
    assert result["calibration"]["sampled"] >= MICRO.target_accuracy
    assert 0 < result["steps"] < 500
    assert result["steps"] % MICRO.check_every == 0


def test_warmup_is_deterministic_and_cached_by_recipe_and_seed(folder: Path, tmp_path: Path) -> None:
    again = ensure_tiny_policy(tmp_path, recipe=MICRO, console=QUIET)
    assert again.name == folder.name
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()
    before = (again / "model.safetensors").stat().st_mtime_ns
    assert ensure_tiny_policy(tmp_path, recipe=MICRO, console=QUIET) == again
    assert (again / "model.safetensors").stat().st_mtime_ns == before

    variants = [
        again,
        ensure_tiny_policy(tmp_path, seed=1, recipe=MICRO, console=QUIET),
        ensure_tiny_policy(tmp_path, recipe=replace(MICRO, matrix_lr=0.03), console=QUIET),
    ]
    for one, other in itertools.combinations(variants, 2):
        assert (one / "model.safetensors").read_bytes() != (other / "model.safetensors").read_bytes()


def test_building_leaves_torch_as_it_was(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    state = torch.random.get_rng_state()
    ensure_tiny_policy(tmp_path, recipe=MICRO, threads=threads + 1, console=QUIET)
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)


def test_out_of_time_fails_below_the_minimum_and_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="max_seconds"):
        ensure_tiny_policy(tmp_path, recipe=replace(MICRO, max_seconds=0.0), console=QUIET)
    assert [p for p in tmp_path.iterdir() if p.is_dir()] == []


def test_out_of_time_above_the_minimum_is_said(tmp_path: Path) -> None:
    console = Console(file=io.StringIO())
    folder = ensure_tiny_policy(tmp_path, recipe=replace(MICRO, max_seconds=0.0, min_accuracy=0.0), console=console)
    assert not warmup_of(folder)["reached_target"]
    output = console.file.getvalue()  # type: ignore[attr-defined]
    assert "short of the target" in output
    assert len(output.splitlines()) == 2  # plain lines, no bar, where nobody watches


def test_problems_the_policy_meets_are_in_its_vocabulary(tokenizer: PreTrainedTokenizerFast) -> None:
    ids, _ = encode_problems(tokenizer, make_problems("train", 200))
    assert tokenizer.unk_token_id not in ids


@pytest.mark.parametrize("shape", [(24, 64), (64, 24), (32, 32)])
def test_muon_updates_are_those_of_torch_but_for_its_precision(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    ours = torch.randn(shape, requires_grad=True)
    torchs = ours.detach().clone().requires_grad_()
    start = ours.detach().clone()
    optimizers = [Muon([ours], lr=0.1), torch.optim.Muon([torchs], lr=0.1, weight_decay=0.0)]
    for _ in range(3):
        gradient = torch.randn(shape)
        ours.grad, torchs.grad = gradient.clone(), gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    assert (ours - torchs).norm() < 0.02 * (ours - start).norm()  # bf16 has three digits


def test_a_mixture_of_experts_is_another_policy_in_the_form_that_vllm_loads(tmp_path: Path) -> None:
    folder = ensure_tiny_policy(tmp_path, recipe=MICRO_MOE, console=QUIET)
    assert folder != ensure_tiny_policy(tmp_path, recipe=MICRO, console=QUIET)
    assert warmup_of(folder)["reached_target"]
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.architectures == ["Qwen3MoeForCausalLM"]
    assert (model.config.num_experts, model.config.num_experts_per_tok) == (4, 2)
    with safe_open(folder / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.layers.0.mlp.experts.3.down_proj.weight" in names and "model.layers.0.mlp.gate.weight" in names


def test_default_mixture_is_a_model_of_millions_that_vllm_can_run(tokenizer: PreTrainedTokenizerFast) -> None:
    recipe = TinyMoeRecipe()
    with torch.device("meta"):
        model = build_model(recipe, tokenizer)
    assert 2e6 <= model.num_parameters() <= 6e6
    assert recipe.expert_size % 32 == 0


@pytest.fixture(scope="module")
def spellings() -> PreTrainedTokenizerFast:
    return build_tokenizer(spellings=4)


def test_spellings_are_tokens_that_are_decoded_to_the_digit(
    tokenizer: PreTrainedTokenizerFast, spellings: PreTrainedTokenizerFast
) -> None:
    assert len(spellings) == len(tokenizer) + 30
    assert spellings("12-34+5").input_ids == tokenizer("12-34+5").input_ids  # text has the first of them
    ids = spellings.convert_tokens_to_ids(["-", "4~4", "4~2", "0", "<|eos|>", "<|pad|>"])
    assert spellings.unk_token_id not in ids
    assert spellings.decode(ids, skip_special_tokens=True) == "-440"
    assert torch.equal(meanings(tokenizer), torch.arange(len(tokenizer)))
    four = spellings.convert_tokens_to_ids("4")
    assert [spellings.decode(token) for token in (meanings(spellings) == four).nonzero()[:, 0]] == ["4"] * 4


def test_answers_are_spelled_by_zipfs_law_and_prompts_are_not(spellings: PreTrainedTokenizerFast) -> None:
    plain = encode_problems(spellings, make_problems("train", 4000))
    ids, labels = spell(*plain, meanings(spellings), 1.5, seed=0)
    prompt = plain[1] == -100
    assert torch.equal(ids[prompt], plain[0][prompt]) and bool((labels[prompt] == -100).all())
    assert torch.equal(ids[~prompt], labels[~prompt])
    assert spellings.batch_decode(ids) == spellings.batch_decode(plain[0])  # the same answers
    assert torch.equal(spell(*plain, meanings(spellings), 1.5, seed=0)[0], ids)
    digits = meanings(spellings)[labels[~prompt]] == spellings.convert_tokens_to_ids("1")
    drawn = [spellings.convert_ids_to_tokens(int(token)) for token in labels[~prompt][digits]]
    odds = torch.arange(1.0, 5.0) ** -1.5
    shares = torch.tensor([drawn.count(token) / len(drawn) for token in ("1", "1~2", "1~3", "1~4")])
    torch.testing.assert_close(shares, odds / odds.sum(), atol=0.03, rtol=0)


def test_accuracy_counts_all_spellings_of_an_answer(spellings: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(0)
    model = build_model(MICRO, spellings).eval()
    ids, labels = encode_problems(spellings, [Problem("1+2", "3")])
    meaning = meanings(spellings)
    one, two = (model(ids[:, :length]).logits[0, -1].softmax(-1) for length in (5, 6))
    right = one[meaning == ids[0, 5]].sum() * two[spellings.eos_token_id]
    assert measure_accuracy(model, ids, labels, meaning).sampled == pytest.approx(right.item(), rel=1e-4)
    assert measure_accuracy(model, ids, labels, torch.arange(len(spellings))).sampled < 0.5 * right.item()


def test_a_long_tailed_vocabulary_is_another_policy_that_spells(tmp_path: Path) -> None:
    # The further down the list the more frequent, here: plain digits are 1 of 36.
    recipe = LongTailRecipe(
        **{each.name: getattr(MICRO, each.name) for each in fields(MICRO)}, spellings=3, exponent=-3.0
    )
    folder = ensure_tiny_policy(tmp_path, recipe=recipe, console=QUIET)
    assert warmup_of(folder)["reached_target"]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert tokenizer.decode(tokenizer.convert_tokens_to_ids(["7~3", "0~2"])) == "70"
    assert model.config.vocab_size == len(tokenizer) == 39
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "12+34"}], add_generation_prompt=True, return_tensors="pt", return_dict=False
    )
    first = model(chat).logits[0, -1].softmax(-1)
    digits = [[tokenizer.convert_tokens_to_ids(f"{digit}{k}") for digit in range(10)] for k in ("", "~2", "~3")]
    plain, second, third = (first[ids].sum().item() for ids in digits)
    assert third > 1.5 * second > 1.5 * plain  # untrained they are alike
