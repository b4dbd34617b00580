"""verl's reward manager in a Ray worker, on responses to mathematics: run by test_reward.py. Prints scores as JSON.

Usage: python reward_worker.py RAY_FOLDER
"""

from __future__ import annotations

import asyncio
import json
import sys

import ray

RESPONSES = (
    (r"Thus \boxed{\frac{3}{6}}.", r"\frac{1}{2}"),
    (r"\boxed{9^{9^{9^{9}}}}", "7"),
    (r"\boxed{2^{10000000000}}", "8"),
    ("Answer: 033", "33"),
    (r"\boxed{34}", "33"),
    (r"Answer: $\{2, 1\}$", r"\{1,2\}"),
    (r"\boxed{1-\frac{4^{30}}{6^{30}}}", r"1-\frac{5^{30}}{6^{30}}"),
    (r"\boxed{46}", 46),  # a column of integers, as parquet keeps it
)


@ray.remote(num_cpus=1)
class RewardWorker:
    """As verl's reward loop has it: an actor with an event loop, scores in its executor."""

    async def score(self) -> list[float]:
        """Score all responses at once."""
        import numpy as np
        import torch
        from omegaconf import OmegaConf
        from verl import DataProto
        from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
        from verl.trainer.ppo.reward import get_custom_reward_fn

        from drpo_verl.rewards import judge

        shared = judge.Judge(seconds=4)
        judge.shared = lambda: shared

        class Tokenizer:
            def decode(self, ids: torch.Tensor, **kwargs: object) -> str:
                return "".join(map(chr, ids.tolist()))

        custom = {"path": "pkg://drpo_verl.rewards.reward", "name": "compute_score"}
        function = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": custom}}))
        manager = NaiveRewardManager(None, Tokenizer(), function)

        def row(response: str, truth: str | int) -> DataProto:
            ids = torch.tensor([list(map(ord, response))])
            return DataProto.from_dict(
                {"responses": ids, "attention_mask": torch.ones_like(ids)},
                {
                    "data_source": np.array(["math_dapo"], dtype=object),
                    "reward_model": np.array([{"style": "rule", "ground_truth": truth}], dtype=object),
                    "extra_info": np.array([{"index": 0}], dtype=object),
                },
            )

        results = await asyncio.gather(*(manager.run_single(row(*each)) for each in RESPONSES))
        shared.close()
        return [result["reward_score"] for result in results]


if __name__ == "__main__":
    ray.init(num_cpus=1, _temp_dir=sys.argv[1], include_dashboard=False, object_store_memory=100_000_000)
    print(json.dumps(ray.get(RewardWorker.remote().score.remote(), timeout=150)))
    ray.shutdown()
