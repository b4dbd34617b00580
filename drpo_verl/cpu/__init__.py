"""The CPU platform: what verl and vLLM need to run their real stack on a machine without an accelerator.

It is active only under ``VERL_PLATFORM=cpu``. Wherever verl or vLLM has a registry, it is used; each remaining patch is
guarded by a check of what it patches, and says which upstream behaviour it works around.
"""

import os


def is_selected() -> bool:
    """Return whether ``VERL_PLATFORM`` selects the CPU in this process; verl, too, ignores case and white space."""
    return os.environ.get("VERL_PLATFORM", "").strip().lower() == "cpu"
