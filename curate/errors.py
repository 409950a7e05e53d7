"""The one exception that users meet."""


class CurateError(Exception):
    """One line for the user: what went wrong, and the command or change that helps."""
