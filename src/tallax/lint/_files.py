# SPDX-License-Identifier: Apache-2.0
"""Finds the files to check: the named files, and the files below the named folders."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence

from tallax.lint._gitignore import GitIgnore
from tallax.lint._source import Problem

# Folders with code of other people, or with generated code. A folder that is named explicitly is read.
_NEVER = (
    *(".eggs", ".git", ".hg", ".ipynb_checkpoints", ".mypy_cache", ".nox", ".pytest_cache", ".ruff_cache", ".svn"),
    *(".tox", ".venv*", "__pycache__", "build", "dist", "node_modules", "site-packages", "venv"),
)
_ENDINGS = (".py", ".ipynb")


def found(
    paths: Sequence[str], exclude: Sequence[str], root: str, *, respect_gitignore: bool = True
) -> tuple[list[str], list[Problem]]:
    """Returns the files, each once and in order, and what could not be read.

    Args:
        paths: Files and folders. A named file is checked, whatever its suffix.
        exclude: Patterns of files to leave out, also if they are named, as pre-commit does.
        root: The folder that patterns with a `/` start from.
        respect_gitignore: Whether to leave out what git ignores below folders; a file that is named is taken.
    """
    walk = _Walk(exclude, root, GitIgnore() if respect_gitignore else None)
    for path in paths:
        walk.visit(path)
    walk.follow_links()
    return sorted(walk.files.values()), walk.problems


def matches(pattern: str, path: str) -> bool:
    """Returns whether a pattern means a file, or a folder that it is in.

    A pattern without a `/` is compared with names, and a pattern with a `/` with whole paths.

    Args:
        pattern: A shell pattern; `*` matches any text, also with a `/`.
        path: The path relative to the folder of the pattern, with `/`.
    """
    parts = path.split("/")
    return any(_means(pattern, "/".join(parts[:end])) for end in range(1, len(parts) + 1))


def relative(path: str, root: str) -> str:
    """Returns a path in the form that patterns match."""
    try:
        return os.path.relpath(path, root).replace(os.sep, "/")
    except ValueError:  # another drive
        return path.replace(os.sep, "/")


def _means(pattern: str, path: str) -> bool:
    whole = "/" in pattern.rstrip("/")
    return fnmatch.fnmatchcase(path if whole else path.rpartition("/")[2], pattern.removeprefix("./").rstrip("/"))


class _Walk:
    """Collects files by their real paths, so that each file is listed once.

    Links are followed last. So a file is listed by a path without links if it has one, and a loop ends at visited
    folders.
    """

    def __init__(self, exclude: Sequence[str], root: str, ignored: GitIgnore | None):
        self.exclude = exclude
        self.root = root
        self.ignored = ignored
        self.files: dict[str, str] = {}
        self.problems: list[Problem] = []
        self._visited: set[tuple[int, int]] = set()
        self._folders: list[tuple[str, str]] = []  # with their real paths
        self._links: list[str] = []
        self._real_folders: dict[str, str] = {}

    def visit(self, path: str) -> None:
        """Adds a named file or folder."""
        if os.path.isdir(path):
            # Whoever names a folder that git ignores, a virtual environment say, wants to see what is in it.
            ignored = self.ignored
            if ignored is not None and ignored.is_within_ignored(os.path.abspath(path)):
                self.ignored = None
            self._below(path)
            self.ignored = ignored
        elif not os.path.lexists(path):
            self.problems.append(Problem(path, "there is no such file or folder", status=2))
        elif not any(matches(pattern, relative(path, self.root)) for pattern in self.exclude):
            self._take(self._real(path), path)

    def _real(self, path: str) -> str:
        """Returns the real path of a file. `os.path.realpath` asks the system about every folder above each file."""
        if os.path.islink(path):
            return os.path.realpath(path)
        folder, name = os.path.split(path)
        real = self._real_folders.get(folder)
        if real is None:
            real = self._real_folders[folder] = os.path.realpath(folder)
        return os.path.join(real, name)

    def follow_links(self) -> None:
        """Adds the targets of links. A link without a target is ignored."""
        while self._links:
            path = self._links.pop(0)
            if os.path.isdir(path):
                self._below(path)
            elif os.path.isfile(path):
                self._take(os.path.realpath(path), path)

    def _below(self, path: str) -> None:
        self._folders.append((path, os.path.realpath(path)))
        while self._folders:  # no recursion, because folders may be nested deeper than Python's stack
            self._folder(*self._folders.pop())

    def _folder(self, path: str, real: str) -> None:
        try:
            status = os.stat(path)
        except OSError as error:
            self._refused(path, error)
            return
        if (status.st_dev, status.st_ino) in self._visited:
            return
        self._visited.add((status.st_dev, status.st_ino))
        for entry in self._entries(path):
            if entry.is_symlink():
                self._links.append(entry.path)
            elif entry.is_dir(follow_symlinks=False):
                self._folders.append((entry.path, os.path.join(real, entry.name)))
            elif entry.is_file(follow_symlinks=False):  # not a pipe, which would block
                self._take(os.path.join(real, entry.name), entry.path)

    def _entries(self, path: str) -> Iterator[os.DirEntry[str]]:
        """Yields the entries of a folder that are not excluded, in order."""
        try:
            with os.scandir(path) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            self._refused(path, error)
            return
        for entry in entries:
            folder = os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir(follow_symlinks=False)
            if folder and any(fnmatch.fnmatchcase(entry.name, pattern) for pattern in _NEVER):
                continue
            if (folder or entry.name.endswith(_ENDINGS)) and not (self.exclude and self._excluded(entry.path)):
                if self.ignored is None or not self.ignored.ignores(os.path.abspath(entry.path), folder):
                    yield entry

    def _excluded(self, path: str) -> bool:
        seen = relative(path, self.root)
        return any(_means(pattern, seen) for pattern in self.exclude)

    def _take(self, real: str, path: str) -> None:
        self.files.setdefault(real, path.removeprefix(f".{os.sep}").replace(os.sep, "/"))

    def _refused(self, path: str, error: OSError) -> None:
        self.problems.append(Problem(path, f"can't be read: {error.strerror or error}", status=2))
