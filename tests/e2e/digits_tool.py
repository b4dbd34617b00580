"""A tool of a multi-turn rollout, how a call of it is read, and a reward for what is answered then.

Loaded by ``rollout.multi_turn.function_tool_path`` and ``reward.custom_reward_function.path``.
"""

from __future__ import annotations

import json
from typing import Any

from verl.experimental.agent_loop.tool_parser import FunctionCall, ToolParser
from verl.tools.function_tool import function_tool
from verl.tools.schemas import OpenAIFunctionToolSchema


@function_tool
def count_characters(answer: str) -> str:
    """Count the characters of an answer.

    Args:
        answer: what was answered.
    """
    return str(len(answer))


@ToolParser.register("whole_answer")
class WholeAnswer(ToolParser):
    """Takes each answer for a call of the tool: the tiny policy's 19 tokens have no words for one."""

    async def extract_tool_calls(
        self, responses_ids: list[int], tools: list[OpenAIFunctionToolSchema] | None = None
    ) -> tuple[str, list[FunctionCall]]:
        answer = self.tokenizer.decode(responses_ids, skip_special_tokens=True)
        return "", [FunctionCall(name="count_characters", arguments=json.dumps({"answer": answer}))]


def last_answer_is_a_number(data_source: str, solution_str: str, ground_truth: str, **others: Any) -> float:
    """1 for a number in the last turn, 0 for an answer that declines: the tiny policy gives both."""
    return float(solution_str.rpartition("<|assistant|>")[2].isdecimal())
