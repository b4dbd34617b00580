"""The supervised warm-up of the tiny policy, which stops when it is right as often as its recipe asks.

Accuracy is computed from the probabilities of the right responses, and not estimated from sampled ones.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from drpo_verl.models.muon import Muon
from drpo_verl.models.tiny_model import DECLINED, LongTailRecipe, TinyPolicyRecipe, meanings
from drpo_verl.rewards.arithmetic import Problem, Split, make_problems, render_prompt


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of a policy on a set of problems, computed from its probabilities; all values in [0, 1].

    Attributes:
        sampled: mean probability of a right response at temperature 1, which is the expected pass@1.
        greedy: share of the problems whose most probable tokens spell the right response.
        pass_at_8: expected share of the problems with a right response among 8 samples.
    """

    sampled: float
    greedy: float
    pass_at_8: float


@dataclass(frozen=True)
class WarmupResult:
    """The result of a warm-up.

    Attributes:
        steps: number of optimizer steps.
        seconds: wall time of the training loop.
        parameters: number of the model's parameters.
        reached_target: False if the time limit ended the warm-up.
        calibration: accuracy on the problems that decided when to stop.
        val: accuracy on problems that played no part in the warm-up.
    """

    steps: int
    seconds: float
    parameters: int
    reached_target: bool
    calibration: Accuracy
    val: Accuracy


def decline_some(problems: Sequence[Problem], share: float, *, seed: int) -> list[Problem]:
    """Return the same problems, a random share of them with the answer `DECLINED`."""
    draw = random.Random(seed)
    return [replace(problem, answer=DECLINED) if draw.random() < share else problem for problem in problems]


def encode_problems(tokenizer: PreTrainedTokenizerFast, problems: Sequence[Problem]) -> tuple[Tensor, Tensor]:
    """Encode each of N problems with its right answer as the chat that RL will see, padded on the right to T tokens.

    Returns:
        Token ids and labels, both int64 `[N, T]`; a label is -100 except on the response (answer and end of text).
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


def spell(ids: Tensor, labels: Tensor, meaning: Tensor, exponent: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Spell each token of the responses at random: the k-th of its spellings with odds of ``k ** -exponent``.

    Args:
        ids: of `encode_problems`, as are the labels, `[N, T]`.
        labels: -100 except on the responses.
        meaning: for each token the first of its spellings, `[V]`.
        exponent: the larger, the rarer are the others; below 0 they are more frequent.
        seed: of the draw.

    Returns:
        Token ids and labels, new ones.
    """
    draw = torch.Generator().manual_seed(seed)
    ids, labels = ids.clone(), labels.clone()
    for first in labels[labels >= 0].unique():
        spellings, places = (meaning == first).nonzero()[:, 0], labels == first
        odds = torch.arange(1.0, len(spellings) + 1) ** -exponent
        drawn = torch.multinomial(odds, int(places.sum()), replacement=True, generator=draw)
        ids[places] = labels[places] = spellings[drawn]
    return ids, labels


@torch.no_grad()
def measure_accuracy(model: nn.Module, ids: Tensor, labels: Tensor, meaning: Tensor) -> Accuracy:
    """Compute the accuracy of a causal language model from the probabilities of the right responses, in one pass.

    One way to write each number counts, so it is a lower bound of what the reward gives ("046" is right as well), and
    tight for a policy that only ever saw that one. Where tokens have other spellings it is an estimate: each token of
    a response may have any spelling, but those before it have the one that they have in ``ids``.

    Args:
        model: the policy.
        ids: of `encode_problems`, as are the labels, `[N, T]`.
        labels: -100 except on the responses.
        meaning: for each token the first of those that are decoded to the same text, `[V]`, whose probabilities count
            together.
    """
    log_probs = model(ids[:, :-1]).logits.float().log_softmax(-1)  # [N, T-1, V]
    targets = labels[:, 1:]
    counted = targets != -100
    right_meaning = meaning[targets.clamp(min=0)].unsqueeze(-1)
    chosen = log_probs.masked_fill(meaning != right_meaning, -torch.inf).logsumexp(-1)
    right = (chosen * counted).sum(-1).exp()  # [N]
    greedy = ((meaning[log_probs.argmax(-1)] == right_meaning.squeeze(-1)) | ~counted).all(-1)
    return Accuracy(
        sampled=right.mean().item(),
        greedy=greedy.float().mean().item(),
        pass_at_8=(1 - (1 - right) ** 8).mean().item(),
    )


def warm_up(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    recipe: TinyPolicyRecipe,
    *,
    seed: int,
    console: Console | None = None,
) -> WarmupResult:
    """Train `model` in place until it is right as often as the recipe asks.

    The same seed gives the same policy on one machine, unless the time limit ends the warm-up.

    Raises:
        RuntimeError: the accuracy is below the recipe's `min_accuracy` at the time limit.
    """
    console = console or Console(stderr=True)
    held_out: dict[Split, int] = {"calibration": recipe.n_calibration, "val": recipe.n_val}
    corpus = make_problems("train", recipe.n_train, seed=seed, difficulty=recipe.difficulty)
    meaning = meanings(tokenizer)

    def encode(problems: Sequence[Problem]) -> tuple[Tensor, Tensor]:
        encoded = encode_problems(tokenizer, problems)
        if isinstance(recipe, LongTailRecipe):
            return spell(*encoded, meaning, recipe.exponent, seed=seed)
        return encoded

    ids, labels = encode(decline_some(corpus, recipe.declined_share, seed=seed))
    calibration, val = (
        encode(make_problems(split, count, seed=seed, difficulty=recipe.difficulty))
        for split, count in held_out.items()
    )
    draw = torch.Generator().manual_seed(seed)
    optimizers = _make_optimizers(model, recipe)
    schedulers = [
        torch.optim.lr_scheduler.LinearLR(optimizer, 1 / recipe.lr_ramp_steps, total_iters=recipe.lr_ramp_steps)
        for optimizer in optimizers
    ]
    steps, accuracy = 0, measure_accuracy(model, *calibration, meaning)
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
                accuracy = measure_accuracy(model, *calibration, meaning)
                progress.update(task, completed=accuracy.sampled, accuracy=accuracy.sampled)
    result = WarmupResult(
        steps=steps,
        seconds=round(time.monotonic() - start, 1),
        parameters=model.num_parameters(),
        reached_target=accuracy.sampled >= recipe.target_accuracy,
        calibration=accuracy,
        val=measure_accuracy(model, *val, meaning),
    )
    if not result.reached_target and accuracy.sampled < recipe.min_accuracy:
        raise RuntimeError(
            f"the warm-up reached {accuracy.sampled:.2f} sampled accuracy in {result.seconds:.0f} s ({steps} steps), "
            f"under {recipe.min_accuracy}: this machine needs a higher {type(recipe).__name__}.max_seconds"
        )
    short = "" if result.reached_target else f", short of the target {recipe.target_accuracy}: out of time"
    console.print(
        f"tiny policy: {result.parameters / 1e6:.1f} M parameters, {steps} steps in {result.seconds:.0f} s, held-out "
        f"accuracy {result.val.sampled:.2f} sampled, {result.val.greedy:.2f} greedy, "
        f"{result.val.pass_at_8:.2f} pass@8{short}",
        soft_wrap=True,
    )
    return result


def _make_optimizers(model: nn.Module, recipe: TinyPolicyRecipe) -> list[torch.optim.Optimizer]:
    # Muon learns addition in a third of AdamW's steps here, so that a minute is enough. It is for matrices: embeddings,
    # head and norms are left to AdamW, and so are the experts, whose matrices are stacked in one parameter.
    matrices = [p for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2]
    ids = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in ids]
    return [
        Muon(matrices, lr=recipe.matrix_lr),
        torch.optim.AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _progress(console: Console, target: float) -> Progress:
    if not console.is_terminal:
        console.print(f"warming up the tiny policy to sampled accuracy {target}, a minute or two, once", soft_wrap=True)
    return Progress(
        TextColumn("warming up the tiny policy: sampled accuracy {task.fields[accuracy]:.2f}"),
        BarColumn(),
        TextColumn(f"{target}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
