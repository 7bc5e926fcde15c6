# SPDX-License-Identifier: Apache-2.0
"""All files that are looked at, and those beside them that these import from, read when a name leads there."""

from __future__ import annotations

import os

from tallax_lint._index import File
from tallax_lint._source import Source, read

_ROOT_MARKS = (".git", "pyproject.toml", "setup.py")


class Tree:
    """The files of one run, by path and by dotted name.

    A name that is imported is looked for below every folder above the importing file, up to the root of its project,
    and below `src` in each: the way Python would find it, whatever is installed. So a single file that is handed in (as
    pre-commit does) is judged with the classes that it derives from.
    """

    def __init__(self) -> None:
        self._files: dict[str, File | None] = {}
        self._isfile: dict[str, bool] = {}
        self._roots: dict[str, list[str]] = {}
        self._modules: dict[tuple[str, str], str | None] = {}

    def add(self, source: Source) -> File | None:
        """Returns the index of a source, None if it does not parse."""
        path = os.path.abspath(source.path)
        if self._files.get(path) is None:
            self._files[path] = None  # a file that is being read is no help to itself
            tree = source.parse()
            if tree is not None:
                self._files[path] = File(tree, source.path, source.text, *self._dotted(path))
        return self._files[path]

    def module(self, dotted: str, importer: File) -> File | None:
        """Returns the file of a module as another file would import it, None if it is none of the project's."""
        path = self.path_of(dotted, importer)
        if path is None:
            return None
        if path not in self._files:
            source = read(path)
            self._files[path] = self.add(source) if isinstance(source, Source) else None
        return self._files[path]

    def release(self) -> None:
        """Takes all files apart, so that they're freed at once."""
        for file in self._files.values():
            if file is not None:
                file.release()
        self._files = {}

    def path_of(self, dotted: str, importer: File) -> str | None:
        """Returns where a module lies as another file would import it, without reading it."""
        folder = os.path.dirname(os.path.abspath(importer.path))
        key = (folder, dotted)
        if key not in self._modules:
            self._modules[key] = self._find(dotted.replace(".", os.sep), folder)
        return self._modules[key]

    def _find(self, relative: str, folder: str) -> str | None:
        for root in self._roots_of(folder):
            base = os.path.join(root, relative)
            for path in (base + ".py", os.path.join(base, "__init__.py")):
                if self._exists(path):
                    return path
        return None

    def _roots_of(self, folder: str) -> list[str]:
        """Returns the folders that absolute imports of a file may start from, nearest first."""
        if folder not in self._roots:
            here = [folder, os.path.join(folder, "src")]
            above = os.path.dirname(folder)
            last = above == folder or any(os.path.exists(os.path.join(folder, mark)) for mark in _ROOT_MARKS)
            self._roots[folder] = here if last else [*here, *self._roots_of(above)]
        return self._roots[folder]

    def _exists(self, path: str) -> bool:
        if path not in self._isfile:
            self._isfile[path] = os.path.isfile(path)
        return self._isfile[path]

    def _dotted(self, path: str) -> tuple[str, str]:
        """Returns a file's module and package, by the `__init__.py` files around it."""
        folder, name = os.path.split(path)
        parts: list[str] = []
        while self._exists(os.path.join(folder, "__init__.py")) and os.path.dirname(folder) != folder:
            folder, last = os.path.split(folder)
            parts.insert(0, last)
        package = ".".join(parts)
        stem = name.removesuffix(".py")
        return (package if stem == "__init__" else ".".join([*parts, stem])), package
