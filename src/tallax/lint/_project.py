# SPDX-License-Identifier: Apache-2.0
"""All files of a run, and the files that they import from, which are read when a name leads there."""

from __future__ import annotations

import os
import sys

from tallax.lint._index import File
from tallax.lint._outline import Outline, outlined
from tallax.lint._reading import read
from tallax.lint._source import Source
from tallax.lint._syntax_walk import walk

_ROOT_MARKS = (".git", "pyproject.toml", "setup.py")
_INSTALLED = ("site-packages", "dist-packages")  # folders with packages of many projects


class Tree:
    """The files of one run, by path and by dotted name.

    An imported name is searched below every folder above the importing file, up to the root of its project, and below
    `src` in each. This is how Python would find it, regardless of the installed packages. So if a single file is
    passed, as pre-commit does, it is checked with its base classes.
    """

    def __init__(self) -> None:
        self._files: dict[str, File | None] = {}
        self._expected: dict[str, Source] = {}
        self._folders: dict[str, str] = {}
        self._listed: dict[str, frozenset[str]] = {}
        self._roots: dict[str, list[str]] = {}
        self._holding: dict[tuple[str, str], list[str]] = {}
        self._modules: dict[tuple[str, str], str | None] = {}

    def expect(self, source: Source) -> None:
        """Notes a source that will be added, so that an import of it parses it as a whole, and only once."""
        self._expected[os.path.abspath(source.path)] = source

    def add(self, source: Source) -> File | None:
        """Returns the index of a source, or None if it does not parse."""
        path = os.path.abspath(source.path)
        self._expected.pop(path, None)
        file = self._files.get(path)
        if file is None or isinstance(file, Outline):
            self._files[path] = None  # a file cannot be used while it is being read
            tree = source.parse()
            if tree is None:
                return None
            if isinstance(file, Outline):
                file.complete(tree)
            else:
                file = File(tree, source.path, source.text, *self._dotted(path))
                walk(file, tree)
            self._files[path] = file
        return file

    def module(self, dotted: str, importer: File) -> File | None:
        """Returns the file of a module as another file would import it, or None if it is not part of the project."""
        path = self.path_of(dotted, importer)
        if path is None:
            return None
        if path not in self._files:
            if path in self._expected:
                return self.add(self._expected[path])
            self._files[path] = None  # a file cannot be used while it is being read
            source = read(path)
            if isinstance(source, Source):
                self._files[path] = outlined(source, *self._dotted(path))
        return self._files[path]

    def release(self) -> None:
        """Breaks the cycles between the files, so that they are freed immediately."""
        for file in self._files.values():
            if file is not None:
                file.release()
        self._files = {}

    def path_of(self, dotted: str, importer: File) -> str | None:
        """Returns the path of a module as another file would import it, without reading it."""
        folder = self._folders.get(importer.path)
        if folder is None:
            folder = self._folders[importer.path] = os.path.dirname(os.path.abspath(importer.path))
        key = (folder, dotted)
        if key not in self._modules:
            self._modules[key] = self._find(dotted, folder)
        return self._modules[key]

    def _find(self, dotted: str, folder: str) -> str | None:
        first = dotted.partition(".")[0]
        for root in self._roots_with(first, folder):
            found = self._below(root, dotted.split("."))
            if found is not None:
                return found
        return None

    def _roots_with(self, first: str, folder: str) -> list[str]:
        """Returns the folders that hold a top-level module or package as a file of some folder may import it."""
        key = (folder, first)
        if key not in self._holding:
            if first in sys.stdlib_module_names and "__init__.py" in self._names(folder):
                # The modules of a package import the standard library's `typing`, also if the package has its own.
                self._holding[key] = []
            else:
                self._holding[key] = [
                    root
                    for root in self._roots_of(folder)
                    if first in (names := self._names(root)) or first + ".py" in names
                    # In `site-packages`, another package is part of another distribution.
                    if os.path.basename(root) not in _INSTALLED
                    or (folder + os.sep).startswith(os.path.join(root, first, ""))
                ]
        return self._holding[key]

    def _below(self, folder: str, parts: list[str]) -> str | None:
        """Returns the path of a module below a folder. It lists no folder that is not there: that takes as long."""
        for part in parts[:-1]:
            if part not in self._names(folder):
                return None
            folder = f"{folder}{os.sep}{part}"
        names, last = self._names(folder), parts[-1]
        if last + ".py" in names:
            return f"{folder}{os.sep}{last}.py"
        if last in names and "__init__.py" in self._names(f"{folder}{os.sep}{last}"):
            return f"{folder}{os.sep}{last}{os.sep}__init__.py"
        return None

    def _roots_of(self, folder: str) -> list[str]:
        """Returns the folders that absolute imports of a file may start from, nearest first."""
        if folder not in self._roots:
            here = [folder, os.path.join(folder, "src")] if "src" in self._names(folder) else [folder]
            above = os.path.dirname(folder)
            last = above == folder or os.path.basename(folder) in _INSTALLED
            last = last or any(mark in self._names(folder) for mark in _ROOT_MARKS)
            self._roots[folder] = here if last else [*here, *self._roots_of(above)]
        return self._roots[folder]

    def _names(self, folder: str) -> frozenset[str]:
        """Returns the names in a folder, with one system call instead of one for each module."""
        names = self._listed.get(folder)
        if names is None:
            try:
                names = frozenset(os.listdir(folder))
            except OSError:
                names = frozenset()
            self._listed[folder] = names
        return names

    def _dotted(self, path: str) -> tuple[str, str]:
        """Returns the module and package of a file, by the `__init__.py` files around it."""
        folder, name = os.path.split(path)
        parts: list[str] = []
        while "__init__.py" in self._names(folder) and os.path.dirname(folder) != folder:
            folder, last = os.path.split(folder)
            parts.insert(0, last)
        package = ".".join(parts)
        stem = name.removesuffix(".py")
        return (package if stem == "__init__" else ".".join([*parts, stem])), package
