# SPDX-License-Identifier: Apache-2.0
"""The patterns of `.gitignore` files, as git reads them."""

from __future__ import annotations

import os
import re
from typing import NamedTuple


class _Pattern(NamedTuple):
    """One line of a file: a regular expression for paths from the file's folder, and its two flags."""

    expression: re.Pattern[str]
    is_negated: bool
    is_for_folders: bool


class GitIgnore:
    """The ignored files and folders of one working tree, whose `.gitignore` files are read when they are asked for."""

    def __init__(self) -> None:
        self._of_folder: dict[str, tuple[_Pattern, ...]] = {}
        self._above: dict[str, tuple[str, ...]] = {}

    def ignores(self, path: str, is_folder: bool) -> bool:
        """Returns whether git ignores a file or folder. Folders above it are not asked: a walk left those out.

        Args:
            path: The absolute path.
            is_folder: Whether it is a folder.
        """
        # The last pattern that matches decides, and those of deeper folders come later.
        for folder in self._folders(os.path.dirname(path)):
            for pattern in reversed(self._patterns(folder)):
                if pattern.is_for_folders and not is_folder:
                    continue
                if pattern.expression.match(os.path.relpath(path, folder).replace(os.sep, "/")):
                    return not pattern.is_negated
        return False

    def is_within_ignored(self, folder: str) -> bool:
        """Returns whether git ignores a folder, one above it, or everything in it."""
        above = self._folders(folder)
        return self.ignores(os.path.join(folder, "any.py"), False) or any(
            self.ignores(each, True) for each in above[:-1]
        )

    def _folders(self, folder: str) -> tuple[str, ...]:
        """Returns a folder and those above it up to the root of the working tree, none if there is no such root."""
        waiting = []  # no recursion: folders nest more deeply than calls may
        while folder not in self._above:
            above = os.path.dirname(folder)
            if os.path.lexists(os.path.join(folder, ".git")):
                self._above[folder] = (folder,)
            elif above == folder:
                self._above[folder] = ()
            else:
                waiting.append(folder)
                folder = above
        found = self._above[folder]
        for below in reversed(waiting):
            found = (below, *found) if found else ()
            self._above[below] = found
        return found

    def _patterns(self, folder: str) -> tuple[_Pattern, ...]:
        if folder not in self._of_folder:
            found: list[_Pattern] = []
            for name in (os.path.join(".git", "info", "exclude"), ".gitignore"):
                found += _read(os.path.join(folder, name))
            self._of_folder[folder] = tuple(found)
        return self._of_folder[folder]


def _read(path: str) -> list[_Pattern]:
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as file:
            lines = file.read().splitlines()
    except OSError:
        return []
    return [pattern for line in lines if (pattern := _pattern(line)) is not None]


def _pattern(line: str) -> _Pattern | None:
    """Returns the pattern of a line, None if it is empty or a comment."""
    line = re.sub(r"(?<!\\) +$", "", line)
    if not line or line.startswith("#"):
        return None
    is_negated = line.startswith("!")
    line = line[is_negated:].removeprefix("\\")
    is_for_folders = line.endswith("/")
    line = line.rstrip("/")
    is_anchored = "/" in line
    body = _translated(line.removeprefix("/"))
    try:
        expression = re.compile(("" if is_anchored else "(?:.*/)?") + body + r"\Z", re.DOTALL)
    except re.error:
        return None
    return _Pattern(expression, is_negated, is_for_folders)


def _translated(pattern: str) -> str:
    """Returns a regular expression: `*` and `?` stop at a slash, `**` between slashes does not."""
    found: list[str] = []
    for part in re.split(r"(\*\*/|/\*\*\Z|\*+|\?|\[!?\]?[^\]]*\]|\\.)", pattern):
        if part == "**/":
            found.append("(?:.*/)?")
        elif part == "/**":
            found.append("/.*")
        elif part.startswith("*"):
            found.append("[^/]*")
        elif part == "?":
            found.append("[^/]")
        elif part.startswith("[") and part.endswith("]") and len(part) > 2:
            inner = part[1:-1]
            found.append(f"[^{inner[1:]}]" if inner[0] in "!^" else f"[{inner}]")
        else:
            found.append(re.escape(part[1:] if part.startswith("\\") and len(part) == 2 else part))
    return "".join(found)
