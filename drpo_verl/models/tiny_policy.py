"""A small real policy: a Qwen3 of ~2 M parameters that has half learned two-digit arithmetic, built in a minute.

Or, with `TinyMoeRecipe`, a Qwen3-MoE.

RL needs a policy that is right sometimes: one that never is gets no reward, one that always is has nothing to gain. So
a supervised warm-up trains a fresh model on the "train" split and stops when its accuracy at temperature 1 reaches a
target. At that point it is spread over near misses (a forgotten carry), with pass@8 far above pass@1.
"""

import dataclasses
import json
import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import torch
import torch.nn.functional as F
import transformers
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from drpo_verl.models.cache import ensure_folder
from drpo_verl.models.muon import Muon
from drpo_verl.rewards.arithmetic import Difficulty, Problem, Split, make_problems, render_prompt

RECIPE_VERSION = 4
"""Raise it when a change of this module's code changes the policy it builds: cached ones are then rebuilt."""

WARMUP_FILE = "warmup.json"
"""In the model folder: what the warm-up reached (`WarmupResult`)."""

# The model's vocabulary is these five and the alphabet: 19 tokens.
PAD, EOS, UNKNOWN, USER, ASSISTANT = "<|pad|>", "<|eos|>", "<|unk|>", "<|user|>", "<|assistant|>"
DECLINED = "?"
"""The answer of one who will not try; never right."""
_ALPHABET = "0123456789+-*" + DECLINED

# One token per turn besides its content: on a CPU every token of a prompt costs. Only these two roles were trained.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}<|user|>{{- message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}<|assistant|>{{- message['content'] -}}<|eos|>"
    "{%- else -%}{{- raise_exception('the tiny policy knows the roles user and assistant only') -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)


@dataclass(frozen=True)
class TinyPolicyRecipe:
    """Everything the policy depends on besides its seed; a changed field is another cached policy.

    Attributes:
        difficulty: the problems it is warmed up on (operators beyond + - * are not in its vocabulary).
        hidden_size: width; a multiple of 32 for vLLM's CPU kernels.
        intermediate_size: width of the gated MLP.
        num_layers: transformer blocks.
        num_heads: query heads.
        num_kv_heads: key/value heads.
        head_dim: one of the sizes vLLM's CPU attention has kernels for (32, 64, 80, ...).
        max_positions: longest prompt + response in tokens.
        target_accuracy: the warm-up stops here: mean probability of a right response at temperature 1, on the
            calibration split.
        min_accuracy: at the time limit, fail below this and accept (with a warning) above.
        max_seconds: time limit of the training loop.
        batch_size: problems per step.
        matrix_lr: of Muon, for the blocks' matrices.
        other_lr: of AdamW, for embeddings, head and norms.
        lr_ramp_steps: both rates rise linearly over these.
        check_every: steps between two looks at the calibration split.
        declined_share: share of the warm-up's problems that are answered by `DECLINED`. The policy learns to decline as
            often, wherever it would have been right or wrong: a habit that a verifier's reward breaks within a few
            dozen steps, where its arithmetic alone takes thousands of samples to improve.
        n_train: different problems to draw batches from.
        n_calibration: problems the stop rule looks at.
        n_val: problems the reported accuracy is measured on; of a split neither trained nor stopped on.
    """

    difficulty: Difficulty = field(default_factory=Difficulty)
    hidden_size: int = 256
    intermediate_size: int = 640
    num_layers: int = 3
    num_heads: int = 4
    num_kv_heads: int = 2
    head_dim: int = 64
    max_positions: int = 128
    target_accuracy: float = 0.28
    min_accuracy: float = 0.1
    max_seconds: float = 600.0  # a minute is enough on an idle laptop
    batch_size: int = 128
    matrix_lr: float = 0.04
    other_lr: float = 2e-3
    lr_ramp_steps: int = 20
    check_every: int = 5
    declined_share: float = 0.4
    n_train: int = 12_000
    n_calibration: int = 256
    n_val: int = 512


@dataclass(frozen=True)
class TinyMoeRecipe(TinyPolicyRecipe):
    """The same policy with a mixture of experts in each block instead of the gated MLP.

    Attributes:
        num_experts: in each block.
        num_experts_per_tok: that a token goes through.
        expert_size: width of an expert; a multiple of 32 for vLLM's CPU kernels.
    """

    num_experts: int = 8
    num_experts_per_tok: int = 2
    expert_size: int = 160


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a policy on a set of problems, computed from its probabilities rather than estimated by sampling.

    Attributes:
        sampled: mean probability of a right response at temperature 1: the expected pass@1.
        greedy: fraction of problems whose most probable tokens spell the right response.
        pass_at_8: expected fraction of problems with a right response among 8 samples.
    """

    sampled: float
    greedy: float
    pass_at_8: float


@dataclass(frozen=True)
class WarmupResult:
    """What a warm-up did.

    Attributes:
        steps: optimizer steps.
        seconds: wall time of the training loop.
        parameters: of the model.
        reached_target: False if the time limit ended it.
        calibration: accuracy on the problems that stopped it.
        val: accuracy on problems it never met in any way.
    """

    steps: int
    seconds: float
    parameters: int
    reached_target: bool
    calibration: Accuracy
    val: Accuracy


def build_tokenizer(max_positions: int = 128) -> PreTrainedTokenizerFast:
    """Build the digit-level tokenizer: one token per character, five markers, no merges."""
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNKNOWN, USER, ASSISTANT, *_ALPHABET])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    core.decoder = decoders.Fuse()  # the default joins tokens with spaces: "4 6"
    # Role markers are not "special": decoding keeps them, so a response that contains one is no number to the reward.
    core.add_tokens([AddedToken(USER, normalized=False), AddedToken(ASSISTANT, normalized=False)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=EOS,
        unk_token=UNKNOWN,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=max_positions,
        padding_side="left",  # what generation in batches needs; training here pads by itself
    )


def build_model(recipe: TinyPolicyRecipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM | Qwen3MoeForCausalLM:
    """Build the untrained fp32 model, initialised from torch's global generator."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    common = {
        # Exactly the tokenizer's: vLLM masks logits beyond it and a trainer does not, so spare rows would make the two
        # disagree on every probability.
        "vocab_size": len(tokenizer),
        "hidden_size": recipe.hidden_size,
        "intermediate_size": recipe.intermediate_size,
        "num_hidden_layers": recipe.num_layers,
        "num_attention_heads": recipe.num_heads,
        "num_key_value_heads": recipe.num_kv_heads,
        "head_dim": recipe.head_dim,
        "max_position_embeddings": recipe.max_positions,
        # vLLM refuses a weight sync that splits a tied pair over two buckets, and the saving would be 18 rows.
        "tie_word_embeddings": False,
        "dtype": "float32",
        **ids,
    }
    model: Qwen3ForCausalLM | Qwen3MoeForCausalLM
    if isinstance(recipe, TinyMoeRecipe):
        config = Qwen3MoeConfig(
            **common,
            architectures=["Qwen3MoeForCausalLM"],
            num_experts=recipe.num_experts,
            num_experts_per_tok=recipe.num_experts_per_tok,
            moe_intermediate_size=recipe.expert_size,
            norm_topk_prob=True,  # as Qwen3-30B-A3B
        )
        model = Qwen3MoeForCausalLM(config).float()
    else:
        model = Qwen3ForCausalLM(Qwen3Config(**common, architectures=["Qwen3ForCausalLM"])).float()
    model.generation_config = GenerationConfig(do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **ids)
    return model


def decline_some(problems: Sequence[Problem], share: float, *, seed: int) -> list[Problem]:
    """The same problems, a share of them with the answer `DECLINED`."""
    draw = random.Random(seed)
    return [replace(problem, answer=DECLINED) if draw.random() < share else problem for problem in problems]


def encode_problems(tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]) -> tuple[Tensor, Tensor]:
    """Encode each problem with its right answer as the chat that RL will see, padded on the right.

    Returns:
        token ids and labels, both int64 `[N, T]`; a label is -100 except on the response (answer and end of text).
    """
    chats = [
        [{"role": "user", "content": render_prompt(p, "terse")}, {"role": "assistant", "content": p.answer}]
        for p in problems
    ]
    prompts = tokenizer.apply_chat_template(
        [chat[:1] for chat in chats], add_generation_prompt=True, tokenize=True, return_dict=False
    )
    full = tokenizer.apply_chat_template(chats, tokenize=True, return_dict=False)
    width = max(map(len, full))
    ids = torch.full((len(full), width), tokenizer.pad_token_id)
    labels = torch.full((len(full), width), -100)
    for row, (prompt, whole) in enumerate(zip(prompts, full, strict=True)):
        if whole[: len(prompt)] != prompt:
            raise ValueError(f"the chat template renders a prompt differently with its answer: {problems[row]}")
        ids[row, : len(whole)] = torch.tensor(whole)
        labels[row, len(prompt) : len(whole)] = ids[row, len(prompt) : len(whole)]
    return ids, labels


@torch.no_grad()
def measure_accuracy(model: nn.Module, ids: Tensor, labels: Tensor) -> Accuracy:
    """Measure accuracy from the right responses' probabilities: one forward pass, no sampling noise.

    Counts one spelling of each answer, so it is a lower bound on what the reward gives ("046" is right as well), tight
    for a policy that only ever saw that spelling.

    Args:
        model: a causal LM.
        ids: `[N, T]`, see `encode_problems`.
        labels: `[N, T]`, likewise.
    """
    log_probs = model(ids[:, :-1]).logits.float().log_softmax(-1)  # [N, T-1, V]
    targets = labels[:, 1:]
    counted = targets != -100
    chosen = log_probs.gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    right = (chosen * counted).sum(-1).exp()  # [N]
    greedy = ((log_probs.argmax(-1) == targets) | ~counted).all(-1)
    return Accuracy(
        sampled=right.mean().item(),
        greedy=greedy.float().mean().item(),
        pass_at_8=(1 - (1 - right) ** 8).mean().item(),
    )


def warm_up(
    model: Qwen3ForCausalLM | Qwen3MoeForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    recipe: TinyPolicyRecipe,
    *,
    seed: int,
    console: Console | None = None,
) -> WarmupResult:
    """Train `model` in place until it is right as often as the recipe asks.

    The same seed gives the same policy on one machine, unless the time limit is what ends the warm-up.

    Raises:
        RuntimeError: below the recipe's `min_accuracy` at the time limit.
    """
    console = console or Console(stderr=True)
    corpus = make_problems("train", recipe.n_train, seed=seed, difficulty=recipe.difficulty)
    ids, labels = encode_problems(tokenizer, decline_some(corpus, recipe.declined_share, seed=seed))
    calibration = _encode_split(tokenizer, "calibration", recipe.n_calibration, seed, recipe)
    val = _encode_split(tokenizer, "val", recipe.n_val, seed, recipe)
    draw = torch.Generator().manual_seed(seed)
    optimizers = _make_optimizers(model, recipe)
    schedulers = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 1 / recipe.lr_ramp_steps, total_iters=recipe.lr_ramp_steps)
        for optimizer in optimizers
    ]
    steps, accuracy = 0, measure_accuracy(model, *calibration)
    start = time.monotonic()
    with _progress(console, recipe.target_accuracy) as progress:
        task = progress.add_task("warm-up", total=recipe.target_accuracy, accuracy=accuracy.sampled)
        while accuracy.sampled < recipe.target_accuracy and time.monotonic() - start < recipe.max_seconds:
            rows = torch.randint(len(ids), (recipe.batch_size,), generator=draw)
            logits = model(ids[rows, :-1]).logits
            loss = F.cross_entropy(logits.flatten(0, 1), labels[rows, 1:].flatten(), ignore_index=-100)
            loss.backward()
            for optimizer, scheduler in zip(optimizers, schedulers, strict=True):
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
            steps += 1
            if steps % recipe.check_every == 0:
                accuracy = measure_accuracy(model, *calibration)
                progress.update(task, completed=accuracy.sampled, accuracy=accuracy.sampled)
    result = WarmupResult(
        steps=steps,
        seconds=round(time.monotonic() - start, 1),
        parameters=model.num_parameters(),
        reached_target=accuracy.sampled >= recipe.target_accuracy,
        calibration=accuracy,
        val=measure_accuracy(model, *val),
    )
    if not result.reached_target and accuracy.sampled < recipe.min_accuracy:
        raise RuntimeError(
            f"the warm-up reached {accuracy.sampled:.2f} sampled accuracy in {result.seconds:.0f} s ({steps} steps), "
            f"under {recipe.min_accuracy}: this machine needs a higher TinyPolicyRecipe.max_seconds"
        )
    short = "" if result.reached_target else f", short of the target {recipe.target_accuracy}: out of time"
    console.print(
        f"tiny policy: {result.parameters / 1e6:.1f} M parameters, {steps} steps in {result.seconds:.0f} s, held-out "
        f"accuracy {result.val.sampled:.2f} sampled, {result.val.greedy:.2f} greedy, "
        f"{result.val.pass_at_8:.2f} pass@8{short}",
        soft_wrap=True,
    )
    return result


def ensure_tiny_policy(
    cache_dir: Path | str,
    *,
    seed: int = 0,
    recipe: TinyPolicyRecipe | None = None,
    threads: int | None = None,
    console: Console | None = None,
) -> Path:
    """Return the folder of the warmed-up policy (an ordinary Hugging Face model folder), building it if need be.

    Args:
        cache_dir: where built policies are kept, one folder per recipe and seed.
        seed: of weights, problems and batches.
        recipe: what to build; the default is what the demo trains.
        threads: torch threads while building; by default as many as there are idle cores now, of which 2 saturate a
            model this small: threads that wait for one without a core take many times longer than a single one. The
            caller's setting is restored, as are its random generators.
        console: where progress goes; standard error by default.

    Raises:
        RuntimeError: this machine is too slow, see `warm_up`.
    """
    recipe = recipe or TinyPolicyRecipe()

    def build(folder: Path) -> None:
        with _torch_settings(seed=seed, threads=threads or _idle_cores(most=2)):
            tokenizer = build_tokenizer(recipe.max_positions)
            model = build_model(recipe, tokenizer)
            result = warm_up(model, tokenizer, recipe, seed=seed, console=console)
        transformers.utils.logging.disable_progress_bar()  # it would say that one small file is written
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / WARMUP_FILE).write_text(json.dumps(dataclasses.asdict(result), indent=2) + "\n")

    key = {"version": RECIPE_VERSION, "seed": seed, **dataclasses.asdict(recipe)}
    return ensure_folder(cache_dir, "tiny-policy", key, build)


def read_warmup_result(folder: Path) -> WarmupResult:
    """Read what the warm-up of an `ensure_tiny_policy` folder reached."""
    raw = json.loads((folder / WARMUP_FILE).read_text())
    return WarmupResult(**{**raw, "calibration": Accuracy(**raw["calibration"]), "val": Accuracy(**raw["val"])})


def _encode_split(
    tokenizer: PreTrainedTokenizerFast, split: Split, count: int, seed: int, recipe: TinyPolicyRecipe
) -> tuple[Tensor, Tensor]:
    return encode_problems(tokenizer, make_problems(split, count, seed=seed, difficulty=recipe.difficulty))


def _make_optimizers(model: nn.Module, recipe: TinyPolicyRecipe) -> list[torch.optim.Optimizer]:
    # Muon learns addition in a third of AdamW's steps here, which is what makes a minute enough. It orthogonalises
    # updates of matrices; embeddings, head and norms are not its business, and neither are the experts, whose matrices
    # are stacked in one parameter.
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        Muon(matrices, lr=recipe.matrix_lr),
        torch.optim.AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _progress(console: Console, target: float) -> Progress:
    if not console.is_terminal:
        console.print(f"warming up the tiny policy to sampled accuracy {target} (about a minute)", soft_wrap=True)
    return Progress(
        TextColumn("warming up the tiny policy: sampled accuracy {task.fields[accuracy]:.2f}"),
        BarColumn(),
        TextColumn(f"{target}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _idle_cores(most: int) -> int:
    cores = len(os.sched_getaffinity(0))
    busy = psutil.cpu_percent(interval=1.0) / 100 * (os.cpu_count() or 1)
    return max(1, min(most, round(cores - busy)))


@contextmanager
def _torch_settings(*, seed: int, threads: int) -> Iterator[None]:
    threads_before = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        torch.set_num_threads(threads)
        try:
            yield
        finally:
            torch.set_num_threads(threads_before)
