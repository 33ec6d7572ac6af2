"""What the user gave that can't be used: one exception type, and the way to a suggestion."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Says in one to five lines what was given, where, the rule it breaks and the way out.

    The command line prints it without a traceback and exits with code 2; from Python it is an ordinary ValueError.
    """


class RunError(InputError):
    """A fault that befell a run, not what it was given: a process that was killed, a disk that is full. The command line exits with code 1."""


def did_you_mean(value: object, known: Iterable[str], listed: int = 12) -> str:
    """Ends an error message about an unknown name: the closest known names, or all of them where they are few.

    Returns:
        A sentence that begins with a space, or the empty string where nothing is close and the names are too many to list.
    """
    names = sorted(known)
    for cutoff in (0.85, 0.6):
        if close := get_close_matches(str(value), names, n=3, cutoff=cutoff):
            return f" Did you mean {' or '.join(close)}?"
    return f" Known: {', '.join(names)}." if 0 < len(names) <= listed else ""


def check_range(name: str, value: float, low: float, high: float = float("inf"), *, exclusive: str = "") -> None:
    """Refuses a number outside low..high, and one that is not finite.

    Args:
        name: The key, for the message.
        value: The number.
        low: Least value.
        high: Largest value.
        exclusive: ``low``, ``high`` or ``low high`` where the bound itself is refused, too.

    Raises:
        InputError: The number is out of range.
    """
    if value is None:
        raise InputError(f"{name} is null, and takes a number.")
    if (
        not low <= value <= high
        or value in (float("inf"), float("-inf"))
        or ("low" in exclusive and value == low)
        or ("high" in exclusive and value == high)
    ):
        above = f"{'more than' if 'low' in exclusive else 'at least'} {low:g}"
        below = "" if high == float("inf") else f" and {'less than' if 'high' in exclusive else 'at most'} {high:g}"
        finite = ", and finite" if abs(value) == float("inf") else ""
        raise InputError(f"{name}={value} is out of range: it must be {above}{below}{finite}.")
