"""The entry point of the group ``verl.plugins``: importing verl in any process imports this module.

It has to be cheap (a run starts about ten processes) and must never break ``import verl``. verl reports what goes
wrong in a plugin at DEBUG level only, so it is reported here.
"""

import logging

try:
    from drpo_verl.integration import hooks  # noqa: F401  arranges what happens when verl's modules are imported
except Exception as error:
    logging.getLogger("drpo_verl").warning(
        "drpo-verl: the plugin could not be loaded (%s: %s); none of it is active. Supported: verl >=0.9,<0.10. "
        "Reinstall it with its dependencies.",
        type(error).__name__,
        error,
    )
    raise
