"""The exceptions that users meet."""


class CurateError(Exception):
    """One line for the user: what went wrong, and the command or change that helps."""


class OptionError(CurateError):
    """An option that does not exist, has a wrong type, is out of range, or contradicts another.

    The command line ends with status 2 (wrong usage) for it, and with 1 for every other error.
    """
