"""What the check has of verl's registries and says of verl's trainer is what verl's sources have."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from drpo_verl.preflight.optimisation import _NOT_FED
from drpo_verl.preflight.parallel import _CHECKPOINT_ENGINES
from drpo_verl.preflight.rollout import _AGENT_LOOPS, _REWARD_MANAGERS

spec = find_spec("verl")
assert spec is not None and spec.submodule_search_locations
VERL = Path(next(iter(spec.submodule_search_locations)))


def registered(folder: str, decorator: str) -> set[str]:
    sources = (path.read_text() for path in (VERL / folder).glob("*.py"))
    return {name for source in sources for name in re.findall(rf'^@{decorator}\("([\w]+)"\)', source, re.MULTILINE)}


def test_registries() -> None:
    assert registered("experimental/agent_loop", "register") == set(_AGENT_LOOPS)
    managers = registered("experimental/reward_loop/reward_manager", "register(?:_manager)?")
    assert managers == set(_REWARD_MANAGERS)
    engines = registered("checkpoint_engine", r"CheckpointEngineRegistry\.register")
    assert engines == {*_CHECKPOINT_ENGINES, "naive"}


def function(path: str, name: str) -> str:
    source = (VERL / path).read_text()
    found = re.search(
        rf"^(\s*)(?:async )?def {name}\(.*?(?=^\1(?:async )?def |^\1@|\Z)", source, re.MULTILINE | re.DOTALL
    )
    assert found, f"{path} has no {name}"
    return found[0]


def test_what_the_trainer_does_not_hand_to_estimators() -> None:
    fetched = function("trainer/ppo/v1/trainer_base.py", "_compute_advantage")
    assert '"rm_scores"' in fetched
    inputs = {"remax": "reward_baselines", "gdpo": "gdpo_reward_keys",
              "optimal_token_baseline": "sum_pi_squared", "tir_optimal_token_baseline": "sum_pi_squared"}  # fmt: skip
    assert inputs.keys() == _NOT_FED.keys()
    algorithms = (VERL / "trainer/ppo/core_algos.py").read_text()
    for needed in inputs.values():
        assert needed in algorithms and needed not in fetched


def test_when_the_trainer_ends_and_what_it_skips() -> None:
    loop = function("trainer/ppo/v1/trainer_base.py", "fit")
    # The epochs end it whatever the steps, and only the last step saves and validates.
    assert (
        "while current_epoch < self.config.trainer.total_epochs and self.global_steps <= self.total_training_steps"
        in loop
    )
    # val_only is read within the validation before training.
    before, _, _ = loop.partition("val_only")
    assert before.rindex("val_before_train") > before.index("def fit")
    assert "critic_warmup <= self.global_steps" in function("trainer/ppo/v1/trainer_base.py", "_step_once")


def test_what_the_agent_loop_reads_of_validation() -> None:
    generate = function("trainer/ppo/v1/agent_loop_tq.py", "generate_sequences")
    assert "val_kwargs.temperature" in generate and "val_kwargs.do_sample" not in generate
    assert "left-truncating" in function("experimental/agent_loop/agent_loop.py", "_cap_text_prompt_length")
