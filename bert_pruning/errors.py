"""The one exception for mistakes that the person at the keyboard can mend.

The command line prints its message alone, without a traceback, and exits
with status 2; from Python it is a `ValueError` like any other.
"""


class UserError(ValueError):
    """Wrong input. The message says what was received and what to do."""
