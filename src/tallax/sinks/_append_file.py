# SPDX-License-Identifier: Apache-2.0
"""`GrowingFile`: a file that grows by whole pieces."""

from __future__ import annotations

import os


class GrowingFile:
    """Appends pieces to a file, each handed to the operating system whole, so that it outlasts the program.

    A piece that can't be written is taken back: what is in the file is what was there before, and can be read.

    Args:
        descriptor: of the file, which is closed with this.
        end: where the next piece goes; what is behind it is overwritten.
    """

    def __init__(self, descriptor: int, end: int = 0):
        self._descriptor, self._end = descriptor, end
        os.lseek(descriptor, end, os.SEEK_SET)

    def append(self, piece: bytes) -> None:
        """Writes a piece.

        Raises:
            OSError: it can't be written, and nothing of it is.
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
