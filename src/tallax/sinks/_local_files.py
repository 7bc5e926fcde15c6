# SPDX-License-Identifier: Apache-2.0
"""The files of sinks: local paths only, appended to in whole pieces, by one program at a time."""

from __future__ import annotations

import os
import re
from pathlib import Path

from tallax._errors import InvalidValueError, RunLockedError

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


def local_path(sink: str, path: str | os.PathLike[str]) -> Path:
    """Returns the path of a file or folder on this machine.

    Raises:
        InvalidValueError: The path is the address of a remote store. Otherwise a folder `gs:` would be created here.
    """
    text = os.fspath(path)
    if _URL.match(text):
        raise InvalidValueError(
            sink,
            "can only write to a folder on this machine.",
            got=repr(text),
            fix="a local folder, which `gcloud storage rsync` or `aws s3 sync` copies; or the store mounted as one",
        )
    return Path(path)


def lock(file: int, path: Path) -> None:
    """Locks a file until it is closed, if the file system supports locks.

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
            str(path),
            "another program, or another Logger, is writing to this run.",
            got="a record for it",
            fix="give each its own folder; or end the other one first",
        ) from None
    except OSError:
        return  # a network file system without locks


class AppendFile:
    """Appends pieces to a file. The operating system receives each whole, so it survives if the program is killed.

    Bytes after `end` are overwritten. If a piece cannot be written completely, it is removed, so the file stays
    readable.
    """

    def __init__(self, descriptor: int, end: int = 0):
        self._descriptor, self._end = descriptor, end
        os.lseek(descriptor, end, os.SEEK_SET)

    def append(self, piece: bytes) -> None:
        """Writes a piece.

        Raises:
            OSError: The piece could not be written. The file is unchanged.
        """
        rest = memoryview(piece)
        try:
            while rest:
                rest = rest[os.write(self._descriptor, rest) :]
        except BaseException:
            os.ftruncate(self._descriptor, self._end)
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            raise
        self._end += len(piece)

    def close(self) -> None:
        os.close(self._descriptor)
