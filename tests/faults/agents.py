"""An agent loop some of whose responses are empty."""

from __future__ import annotations

import itertools
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

_samples = itertools.count()


class SometimesEmpty(SingleTurnAgentLoop):  # type: ignore[misc]
    """verl's own loop of one turn; of every five samples, one is without any token."""

    async def run(self, sampling_params: dict[str, Any], **kwargs: Any) -> AgentLoopOutput:
        output = await super().run(sampling_params, **kwargs)
        if next(_samples) % 5 == 0:
            output.response_ids, output.response_mask = [], []
            if output.response_logprobs is not None:
                output.response_logprobs = []
        return output
