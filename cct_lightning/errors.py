"""What the user gave that can't be used: one exception type, and the way to a suggestion."""

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """Says in one to five lines what was given, where, the rule it breaks and the way out.

    The command line prints it without a traceback and exits with code 2; from Python it is an ordinary ValueError.
    """


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
