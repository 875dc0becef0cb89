"""The errors that a user can mend.

The command line prints it as a single line and exits with 2; everything else is our fault and exits with 1.
"""


class UserError(ValueError):
    """Something the user must change: says what is wrong, where, what is allowed and what to do, in one line."""


class Diverged(UserError):
    """Training has left the finite numbers; raised on all ranks together. A sweep records it and goes on."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
