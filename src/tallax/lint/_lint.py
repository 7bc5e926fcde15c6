# SPDX-License-Identifier: Apache-2.0
"""One run: files are read, judged by the rules, and what their owners silenced is taken out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence

from tallax.lint import _engine, _noqa
from tallax.lint._config import Config, config_above
from tallax.lint._files import found
from tallax.lint._finding import Finding
from tallax.lint._reading import read
from tallax.lint._source import Problem, Source


@dataclasses.dataclass(frozen=True)
class Report:
    """What a run says.

    Attributes:
        findings: In the order of path and place.
        problems: What was not judged, and why.
        sources: The files that were, by path.
    """

    findings: list[Finding]
    problems: list[Problem]
    sources: dict[str, Source]

    @property
    def status(self) -> int:
        """The exit status: 0 if there is nothing to tell, 1 with findings, 2 if something could not be done.

        A file that does not parse makes 1, as it does in ruff: nobody knows that it has no findings.
        """
        return max([int(bool(self.findings)), *(problem.status for problem in self.problems)])


def lint(paths: Sequence[str | os.PathLike[str]], config: Config | None = None) -> Report:
    """Checks files, and the Python files and notebooks in folders.

    Args:
        paths: The files and folders.
        config: Which rules speak of which files; by default, what the nearest `pyproject.toml` above the first asks.

    Raises:
        ConfigError: that file asks for what is not known.

    Example:
        >>> from tallax.lint import lint
        >>> lint(["no/such/folder"]).problems[0].message
        'there is no such file or folder'
    """
    if config is None:
        config = config_above(os.fspath(paths[0]) if paths else ".")
    files, problems = found([os.fspath(path) for path in paths], config.exclude, config.root)
    return judged([read(file) for file in files], config, problems)


def judged(sources: Iterable[Source | Problem], config: Config, problems: Sequence[Problem] = ()) -> Report:
    """Returns the report on files that were read, or were not, after what went wrong before."""
    every = list(sources)
    read_ones = [source for source in every if isinstance(source, Source)]
    by_path: dict[str, list[Finding]] = {}
    findings, failures = _found(read_ones)
    for finding in findings:
        by_path.setdefault(finding.path, []).append(finding)
    kept: list[Finding] = []
    for source in read_ones:
        some = by_path.get(source.path)
        if some:
            codes = config.codes(source.path)
            kept += _noqa.unsilenced(source, [finding for finding in some if finding.code in codes])
    problems = [*problems, *(problem for problem in every if isinstance(problem, Problem))]
    problems += [*failures, *(problem for source in read_ones for problem in source.problems)]
    return Report(sorted(kept), problems, {source.path: source for source in read_ones})


def _found(sources: list[Source]) -> tuple[list[Finding], list[Problem]]:
    """Returns what the rules say; a file that is too much for them takes no other file with it."""
    try:
        return _engine.findings_in(sources), []
    except Exception as error:
        if len(sources) == 1:
            path = sources[0].path
            if isinstance(error, RecursionError):
                return [], [Problem(path, "skipped: nested too deeply for the rules")]
            return [], [Problem(path, f"tallax lint failed on it, {type(error).__name__}: {error}", status=2)]
    findings: list[Finding] = []
    problems: list[Problem] = []
    for source in sources:
        some, failures = _found([source])
        findings += some
        problems += failures
    return findings, problems
