# SPDX-License-Identifier: Apache-2.0
"""`lock`: keeps a second program from writing to the same run."""

from __future__ import annotations

from pathlib import Path

from tallax._errors import RunLockedError, compose


def lock(file: int, path: Path) -> None:
    """Locks a file until it is closed, if the file system supports locks.

    Args:
        file: The descriptor of the file.
        path: The path of the run, for errors.

    Raises:
        RunLockedError: Another program has locked the file.
    """
    try:
        import fcntl
    except ModuleNotFoundError:  # not a POSIX system
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise RunLockedError(
            compose(
                str(path),
                "another program, or another Logger, is writing to this run.",
                got="a record for it",
                fix="give each its own folder; or end the other one first",
            )
        ) from None
    except OSError:
        return  # a network file system without locks
