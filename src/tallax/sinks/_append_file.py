# SPDX-License-Identifier: Apache-2.0
"""`AppendFile`: a file to which only whole pieces are appended."""

from __future__ import annotations

import os


class AppendFile:
    """Appends pieces to a file. The operating system receives each whole, so it survives if the program is killed.

    If a piece cannot be written completely, it is removed, so the file stays readable.

    Args:
        descriptor: The descriptor of the file. `close` closes it.
        end: The position of the next piece. Bytes after it are overwritten.
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
