# SPDX-License-Identifier: Apache-2.0
"""Reads files: decodes them as Python does (PEP 263), or extracts the code of notebooks."""

from __future__ import annotations

from tallax.lint._source import Problem, Source

_BOM = b"\xef\xbb\xbf"


def read(path: str) -> Source | Problem:
    """Returns a file, or the reason why it cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except OSError as error:
        return Problem(path, f"can't be read: {error.strerror or error}", status=2)
    return decoded(path, data)


def decoded(path: str, data: bytes) -> Source | Problem:
    """Returns the file with some bytes as content, or the reason why it cannot be read."""
    if path.endswith(".ipynb"):
        from tallax.lint import _notebook

        return _notebook.source(path, data)
    try:
        encoding = _encoding(data)
        return Source(path, data.decode(encoding), encoding=encoding)
    except (SyntaxError, LookupError, ValueError) as error:  # errors of a cookie, of a codec, and of bytes
        return Problem(path, f"skipped: its encoding can't be read: {str(error).partition(chr(10))[0]}")


def _encoding(data: bytes) -> str:
    """Returns the encoding of some bytes by PEP 263; `utf-8-sig` is UTF-8 with a byte order mark."""
    second = data.find(b"\n", data.find(b"\n") + 1)
    if b"coding" not in (data if second < 0 else data[:second]):
        return "utf-8-sig" if data.startswith(_BOM) else "utf-8"
    import io
    import tokenize

    return tokenize.detect_encoding(io.BytesIO(data).readline)[0]
