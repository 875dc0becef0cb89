"""The errors that a user can mend.

Whoever ends a process for one prints it by `tell_error` and exits with 2; everything else is our fault and exits with 1.
"""

import sys
from collections.abc import Sequence


class UserError(ValueError):
    """Something the user must change: says what is wrong, where, what is allowed and what to do, in one line."""


class NoText(UserError):
    """The recipe's source is in order and has no text of this language; evaluation leaves it out and goes on."""


class Diverged(UserError):
    """Training has left the finite numbers; raised on all ranks together. A sweep records it and goes on."""


def first_line(error: BaseException) -> str:
    """What an error of another library says, cut to one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def tell_error(error: UserError | str) -> None:
    """Prints an error as the one line that it is."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)


def refuse(faults: Sequence[str]) -> None:
    """Tells all that is wrong, a line each; does nothing where nothing is.

    Raises:
        UserError: The last of them; the others are printed before it.
    """
    for fault in faults[:-1]:
        tell_error(fault)
    if faults:
        raise UserError(faults[-1])
