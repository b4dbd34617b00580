"""Where Hydra itself looks for plugins, of every installed package: it finds ``+method=`` and the other groups here.

verl's own plugins can be switched off (VERL_USE_EXTERNAL_PLUGINS). Hydra would then take ``+method=drpo`` for a new
setting called ``method``, and verl would silently train with its default loss.
"""

from drpo_verl.configuration.search_path import DrpoVerlSearchPath

__all__ = ["DrpoVerlSearchPath"]
