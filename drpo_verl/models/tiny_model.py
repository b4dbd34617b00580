"""The tiny policies' recipes, tokenizer and untrained model: a Qwen3 or a Qwen3-MoE of some million parameters."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from drpo_verl.rewards.arithmetic import Difficulty

# The model's vocabulary of 19 tokens: these five and the alphabet.
PAD, EOS, UNKNOWN, USER, ASSISTANT = "<|pad|>", "<|eos|>", "<|unk|>", "<|user|>", "<|assistant|>"
DECLINED = "?"
"""An answer that declines to try; it is never right."""
_DIGITS = "0123456789"
_ALPHABET = _DIGITS + "+-*" + DECLINED

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
        difficulty: problems of the warm-up; the vocabulary has no operators beyond + - *.
        hidden_size: width; a multiple of 32 for vLLM's CPU kernels.
        intermediate_size: width of the gated MLP.
        num_layers: number of transformer blocks.
        num_heads: number of query heads.
        num_kv_heads: number of key/value heads.
        head_dim: one of the sizes vLLM's CPU attention has kernels for (32, 64, 80, ...).
        max_positions: longest prompt + response in tokens.
        target_accuracy: the warm-up stops at this mean probability of a right response at temperature 1 on the
            calibration split.
        min_accuracy: at the time limit, the warm-up fails below this and is accepted (with a warning) above.
        max_seconds: time limit of the training loop.
        batch_size: problems per step.
        matrix_lr: learning rate of Muon, which trains the blocks' matrices.
        other_lr: learning rate of AdamW, which trains embeddings, head and norms.
        lr_ramp_steps: both rates rise linearly over these steps.
        check_every: the accuracy on the calibration split is measured after so many steps.
        declined_share: share of the warm-up's problems that are answered by `DECLINED`. The policy learns to decline as
            often, whether it would have been right or wrong: a habit that a verifier's reward breaks within a few
            dozen steps, where its arithmetic alone takes thousands of samples to improve.
        n_train: different problems that batches are drawn from.
        n_calibration: problems that decide when the warm-up stops.
        n_val: problems on which the reported accuracy is measured; of a split neither trained nor stopped on.
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
        num_experts: experts in each block.
        num_experts_per_tok: experts that each token goes through.
        expert_size: width of an expert; a multiple of 32 for vLLM's CPU kernels.
    """

    num_experts: int = 8
    num_experts_per_tok: int = 2
    expert_size: int = 160


@dataclass(frozen=True)
class LongTailRecipe(TinyPolicyRecipe):
    """A policy with a long-tailed vocabulary: each digit has many spellings, tokens that are decoded to it.

    In the warm-up each digit of an answer is spelled at random, once for each problem, the k-th spelling with a
    probability proportional to ``k ** -exponent`` (Zipf's law). That is how the policy comes to spell, though of the
    rarest it sees few or none. The reward sees the decoded text, in which spellings look the same: as where a language
    model has many words for one thing, and samples rare ones among them.

    Greedy decoding makes it decline more than sampling does: `DECLINED` has one spelling, and a digit's mass is spread.

    Attributes:
        target_accuracy: lower than the other policies', which takes twice their steps to reach.
        max_seconds: longer, for that reason; two minutes are enough on two idle cores.
        spellings: how many each digit has.
        exponent: how fast they become rarer.
    """

    target_accuracy: float = 0.2
    max_seconds: float = 1800.0
    spellings: int = 64
    exponent: float = 1.5


def build_tokenizer(max_positions: int = 128, spellings: int = 1) -> PreTrainedTokenizerFast:
    """Build the digit-level tokenizer, which has one token per character, five markers and no merges.

    Args:
        max_positions: longest prompt + response in tokens.
        spellings: how many tokens are decoded to each digit. Text is encoded with the first of them.
    """
    others = [f"{digit}~{k}" for digit in _DIGITS for k in range(2, spellings + 1)]
    vocabulary = {token: i for i, token in enumerate([PAD, EOS, UNKNOWN, USER, ASSISTANT, *_ALPHABET, *others])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
    core.decoder = decoders.Fuse()  # the default joins tokens with spaces: "4 6"
    if others:
        core.decoder = decoders.Sequence([decoders.Replace(Regex(r"~\d+"), ""), core.decoder])
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


def meanings(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """For each token the first that is decoded to the same text, int64 ``[V]``: itself, but for other spellings."""
    first: dict[str, int] = {}
    return torch.tensor([first.setdefault(tokenizer.decode([token]), token) for token in range(len(tokenizer))])


def build_model(recipe: TinyPolicyRecipe, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Build the untrained fp32 model, initialised from torch's global generator."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    common = {
        # No spare rows: vLLM masks logits beyond the tokenizer's vocabulary and a trainer does not, so that the two
        # would disagree on every probability.
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
    model: PreTrainedModel
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
