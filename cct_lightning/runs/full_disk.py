"""What is said where a file can't be written for want of room."""

import errno
import shutil
from pathlib import Path

from cct_lightning.errors import RunError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # the disk, the user's share of it, the limit of a file (ulimit -f)


def full_disk(error: BaseException | None, path: Path | None = None, needed: int | None = None) -> RunError | None:
    """Makes the error of a write that found no room.

    Args:
        error: What was raised; torch hides the system's error behind one of its own.
        path: The file; None: the one that the system's error names.
        needed: Its bytes, where they are known.

    Returns:
        The error, None where what was raised is another fault.
    """
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    if error is None or error.errno not in FULL:
        return None
    place = path or Path(str(error.filename or "."))
    free = shutil.disk_usage(next(folder for folder in (place, *place.absolute().parents) if folder.is_dir())).free
    room = f"{free / 1e6:,.1f} MB are free there"
    if error.errno == errno.EFBIG:
        import resource  # not on Windows, which has no such limit

        room += f", and a file may have {resource.getrlimit(resource.RLIMIT_FSIZE)[0] / 1e6:,.1f} MB (ulimit -f)"
    needs = "" if needed is None else f"it needs {needed / 1e6:,.1f} MB, "
    return RunError(f"{path or error.filename or 'a file of the run'} can't be written ({error.strerror}): {needs}{room}.")
