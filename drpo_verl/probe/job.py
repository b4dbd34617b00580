"""The job that both engine processes of a probe get."""

from __future__ import annotations

from dataclasses import dataclass

from drpo_verl.probe.prompts import Messages
from drpo_verl.probe.settings import Settings


@dataclass(frozen=True)
class Job:
    """What a probe's two engine processes need to know.

    Attributes:
        settings: the options of the probe.
        model: a folder, or a name on the hub.
        device: a torch device type, see ``drpo_verl.engine.device.device_type``.
        prompts: the messages of each prompt.
        top_k: number of the likeliest tokens to list at each position.
    """

    settings: Settings
    model: str
    device: str
    prompts: list[Messages]
    top_k: int
