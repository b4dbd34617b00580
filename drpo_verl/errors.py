"""What the user is told without a traceback."""


class UserError(Exception):
    """It can not go on; the message names the setting, its value and the remedy."""
