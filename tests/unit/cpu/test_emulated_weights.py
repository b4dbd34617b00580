"""What a weight is after it went through a format and back."""

from __future__ import annotations

import pytest
import torch

from drpo_verl.configuration.precision import EMULATED_FORMATS
from drpo_verl.cpu.emulated_weights import round_trip

LEVELS = {"int8": 255, "int4": 15, "int3": 7, "fp8": 253}
"""How many values a channel can have: of e4m3 that is 2 x 126 and zero."""


@pytest.fixture
def weight() -> torch.Tensor:
    return torch.randn(6, 4096, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("weight_format", EMULATED_FORMATS)
def test_every_channel_has_the_levels_of_its_format_and_keeps_its_largest_value(
    weight: torch.Tensor, weight_format: str
) -> None:
    weight *= torch.tensor([1e-3, 1.0, 10.0, 1e3, 1.0, 1.0])[:, None]
    back = round_trip(weight, weight_format)
    for channel, original in zip(back, weight, strict=True):
        assert LEVELS[weight_format] / 2 < len(channel.unique()) <= LEVELS[weight_format]
        torch.testing.assert_close(channel.abs().max(), original.abs().max())
        # A channel that is 1000 times larger does not take the others' levels.
        assert (channel - original).abs().max() < original.abs().max() / 5


@pytest.mark.parametrize(("bits", "weight_format"), [(8, "int8"), (4, "int4"), (3, "int3")])
def test_integers_are_rounded_to_the_nearest_of_a_symmetric_range(bits: int, weight_format: str) -> None:
    top = 2 ** (bits - 1) - 1
    grid = torch.arange(-top, top + 1).float()
    off = torch.cat([grid[:-1] + 0.4, grid[-1:]])  # the last keeps the scale at 1
    assert torch.equal(round_trip(off[None], weight_format)[0], grid)


def test_e4m3_keeps_three_bits_of_the_mantissa() -> None:
    weight = torch.tensor([[448.0, 17.0, 19.0, 0.0, -1.07]])  # the scale is 1
    assert round_trip(weight, "fp8").tolist() == [[448.0, 16.0, 20.0, 0.0, -1.125]]


@pytest.mark.parametrize("weight_format", EMULATED_FORMATS)
def test_a_second_round_trip_changes_nothing_and_a_channel_of_zeros_stays(
    weight: torch.Tensor, weight_format: str
) -> None:
    weight[2] = 0
    once = round_trip(weight, weight_format)
    torch.testing.assert_close(round_trip(once, weight_format), once, rtol=1e-6, atol=0)
    assert not once[2].any()


def test_the_dtype_stays_and_the_weight_itself_is_not_changed(weight: torch.Tensor) -> None:
    weight = weight.bfloat16()
    before = weight.clone()
    back = round_trip(weight, "int4")
    assert back.dtype == torch.bfloat16 and torch.equal(weight, before) and not torch.equal(back, before)
