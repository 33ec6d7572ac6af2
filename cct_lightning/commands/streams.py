"""stdout and stderr of a command, which may be closed, full, or a pipe that nobody reads any more: nothing is lost by it but the words."""

import errno
import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class _Raw(io.RawIOBase):
    """Writes to a file descriptor, and to nowhere from the first write that fails; that one is kept in ``lost``."""

    def __init__(self, number: int, lost: list[OSError]) -> None:
        self.number, self.lost = number, lost

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self.number

    def isatty(self) -> bool:
        return os.isatty(self.number)

    def write(self, data: Any) -> int:
        try:
            return os.write(self.number, data)
        except BlockingIOError:
            return 0  # the buffer above tries again
        except OSError as error:
            self.lost.append(error)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.number)  # also for all else that writes there: other streams, libraries, launched processes
            os.close(nowhere)
            if self.number == 1 and error.errno != errno.EPIPE:  # a reader that has gone (head, less) wants no more
                with suppress(OSError):
                    os.write(2, f"error: stdout can't be written ({error.strerror}): what follows is said nowhere.\n".encode())
            return len(bytes(data))


def _open_closed() -> None:
    """Opens descriptors 0 to 2 on nothing where they are closed: the next file to be opened would get the number, and all that is printed."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free


def _stubborn(stream: TextIO | None, number: int, lost: list[OSError]) -> TextIO | None:
    """Returns a stream in the place of a standard one that is written to its descriptor; None where it is another, as in a notebook."""
    try:
        if stream is not None and stream.fileno() != number:
            return None
    except (OSError, ValueError):
        return None
    encoding, errors = (stream.encoding, stream.errors) if stream is not None else ("utf-8", "replace")
    by_lines = stream is None or bool(stream.line_buffering) or bool(getattr(stream, "write_through", False))  # the last with python -u
    return io.TextIOWrapper(io.BufferedWriter(_Raw(number, lost)), encoding, errors, line_buffering=by_lines)


@contextmanager
def kept_open() -> Iterator[list[OSError]]:
    """Keeps a command going whatever becomes of stdout and stderr; the list tells, at the end, what was the matter with stdout."""
    _open_closed()
    lost: list[OSError] = []
    before = sys.stdout, sys.stderr
    for name, number, found in (("stdout", 1, lost), ("stderr", 2, [])):
        stream: TextIO | None = getattr(sys, name)
        with suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()
        if new := _stubborn(stream, number, found):
            setattr(sys, name, new)
    ours = sys.stdout, sys.stderr
    try:
        yield lost
    finally:
        for stream in ours:
            with suppress(OSError, ValueError):
                stream.flush()
        sys.stdout, sys.stderr = before
