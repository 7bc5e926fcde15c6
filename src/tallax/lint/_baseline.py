# SPDX-License-Identifier: Apache-2.0
"""Baselines: files of findings that a project has when it starts to use the linter, and that are not reported.

An entry is a file, a rule, and the text of the line with how often it occurs, so an entry outlives changes elsewhere in
its file. A finding beyond that number is new, and is reported.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Iterable, Mapping

from tallax.lint._files import relative
from tallax.lint._finding import Finding
from tallax.lint._source import Source

Key = tuple[str, str, str]
_VERSION = 1


class BaselineError(ValueError):
    """A file is not a baseline, or cannot be read."""


class Baseline:
    """The findings that a file lists; the paths in it start from the folder of the file."""

    def __init__(self, path: str, counts: Mapping[Key, int]):
        self.path = path
        self._of_file: dict[str, collections.Counter[Key]] = {}
        for key, count in counts.items():
            self._of_file.setdefault(key[0], collections.Counter())[key] += count

    @classmethod
    def read(cls, path: str) -> Baseline:
        """Returns the baseline of a file.

        Raises:
            BaselineError: The file cannot be read, or is not a baseline.
        """
        try:
            with open(path, encoding="utf-8") as file:
                data = json.load(file)
            if data["version"] != _VERSION:
                raise BaselineError(f"{path}: the version is {data['version']!r}, and this tallax reads {_VERSION}")
            counts = {(e["path"], e["code"], e["text"]): int(e["count"]) for e in data["findings"]}
        except OSError as error:
            raise BaselineError(f"{path}: can't be read: {error.strerror or error}") from None
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            if isinstance(error, BaselineError):
                raise
            raise BaselineError(f"{path}: not a baseline of tallax lint") from None
        return cls(path, counts)

    def new(self, source: Source, findings: Iterable[Finding]) -> list[Finding]:
        """Returns the findings in a file that the baseline does not list."""
        left: collections.Counter[Key] = collections.Counter()
        kept = []
        for k, finding in enumerate(findings):
            key = _key(finding, source, self.path)
            if not k:
                left.update(self._of_file.get(key[0], {}))
            if left[key] > 0:
                left[key] -= 1
            else:
                kept.append(finding)
        return kept


def write(path: str, findings: Iterable[Finding], sources: Mapping[str, Source]) -> int:
    """Writes a baseline of some findings, and returns how many there are."""
    counts = collections.Counter(_key(finding, sources[finding.path], path) for finding in findings)
    entries = [
        {"path": name, "code": code, "text": text, "count": count}
        for (name, code, text), count in sorted(counts.items())
    ]
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        json.dump({"version": _VERSION, "findings": entries}, file, indent=1)
        file.write("\n")
    return sum(counts.values())


def _key(finding: Finding, source: Source, baseline: str) -> Key:
    lines = source.lines()[finding.line - 1 : finding.line]
    folder = os.path.dirname(os.path.abspath(baseline))
    return relative(os.path.abspath(finding.path), folder), finding.code, "".join(lines).strip()
