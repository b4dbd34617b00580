"""verl's agent loop with a tool, of whose two turns a Top-K method needs the rows."""

from __future__ import annotations

from pathlib import Path

from stack import ONE_UPDATE, SHORT, start

TOOL = Path(__file__).with_name("digits_tool.py")
MULTI_TURN = "actor_rollout_ref.rollout.multi_turn"
# The tiny policy's own template has no tools, and refuses their messages.
CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{%- if message['role'] in ['user', 'tool'] -%}<|user|>{{- message['content'] -}}"
    "{%- elif message['role'] == 'assistant' -%}<|assistant|>{{- message['content'] -}}<|eos|>{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}<|assistant|>{%- endif -%}"
)
TURNS = 4
"""As verl counts them: the problem, an answer, what the tool says of it, and another answer."""


def test_the_turns_of_a_tool_agent_have_top_k(tmp_path: Path) -> None:
    run = start(
        tmp_path / "turns", *SHORT, ONE_UPDATE, "method=dppo_topk_tv", "trainer.total_training_steps=2",
        "trainer.save_freq=-1", "trainer.test_freq=-1", "data.max_response_length=16",
        "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent", f"{MULTI_TURN}.enable=true",
        f"{MULTI_TURN}.function_tool_path={TOOL}", f"reward.custom_reward_function.path={TOOL}",
        "reward.custom_reward_function.name=last_answer_is_a_number",
        f"{MULTI_TURN}.format=whole_answer", f"{MULTI_TURN}.max_assistant_turns=2",
        f'actor_rollout_ref.model.custom_chat_template="{CHAT_TEMPLATE}"',
        # In bf16, so that the two distributions differ.
        "precision=cpu_bf16_rollout",
    )  # fmt: skip
    # A token of either turn without its row, or with another token's, would have ended the run; and so would a token of
    # the tool, which has no row, if it were trained on.
    assert [step.step for step in run.steps] == [1, 2]
    for step in run.steps:
        assert step.metrics["training/num_turns/max"] == TURNS and step.metrics["training/num_turns/mean"] > TURNS - 1
        assert 0 < step.metrics["critic/score/mean"] < 1 and step.metrics["actor/grad_norm"] > 0
        binary, partition = (
            step.metrics[f"mismatch/{name}_mean"] for name in ("abs_prob_diff", "partition_divergence")
        )
        assert 0 < 0.99 * binary - 1e-3 <= partition < 0.15
