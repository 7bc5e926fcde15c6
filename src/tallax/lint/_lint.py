# SPDX-License-Identifier: Apache-2.0
"""One run: files are found, read and judged by the rules; then silenced and known findings are left out."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from tallax.lint import _engine, _noqa
from tallax.lint._baseline import Baseline, BaselineError
from tallax.lint._config import Config, ConfigError, NearestConfigs, known_codes
from tallax.lint._files import found, matches, relative
from tallax.lint._finding import Finding
from tallax.lint._reading import read
from tallax.lint._source import Problem, Source

Configs: TypeAlias = Config | NearestConfigs


@dataclasses.dataclass(frozen=True)
class Report:
    """The result of a run.

    Attributes:
        findings: In the order of path and place.
        problems: The files and cells that were not judged, and why.
        sources: The files that were judged, by path.
    """

    findings: list[Finding]
    problems: list[Problem]
    sources: dict[str, Source]

    @property
    def status(self) -> int:
        """The exit status: 0 if nothing was found, 1 with findings, 2 if something could not be done.

        A file that does not parse makes 1, as it does in ruff: it may have findings.
        """
        return max([int(bool(self.findings)), *(problem.status for problem in self.problems)])


def lint(paths: Sequence[str | os.PathLike[str]], config: Config | None = None) -> Report:
    """Checks files, and the Python files and notebooks in folders.

    Args:
        paths: The files and folders.
        config: The rules to apply to each file. If it is omitted, the nearest `pyproject.toml` above each file decides.

    Raises:
        ConfigError: A `pyproject.toml` or a baseline cannot be read, or contains something unknown.

    Example:
        >>> from tallax.lint import lint
        >>> lint(["no/such/folder"]).problems[0].message
        'there is no such file or folder'
    """
    names = [os.fspath(path) for path in paths]
    return linted(names, NearestConfigs(names[0] if names else ".") if config is None else config)


def linted(paths: Sequence[str], configs: Configs) -> Report:
    """Returns the report on files and folders. The configuration of the first path decides how folders are walked."""
    start = configs if isinstance(configs, Config) else configs.start
    files, problems = found(paths, start.exclude, start.root, respect_gitignore=start.respect_gitignore)
    return judged([read(file) for file in files if not _is_excluded(file, start, configs)], configs, problems)


def _is_excluded(path: str, start: Config, configs: Configs) -> bool:
    """Returns whether a configuration between the first path and the file leaves the file out."""
    config = configs.at(path)
    if config is start or not config.exclude:
        return False
    seen = relative(path, config.root)
    return any(matches(pattern, seen) for pattern in config.exclude)


def judged(sources: Iterable[Source | Problem], configs: Configs, problems: Sequence[Problem] = ()) -> Report:
    """Returns the report on files that were read, or were not, after the problems of finding them."""
    every = list(sources)
    read_ones = [source for source in every if isinstance(source, Source)]
    by_path: dict[str, list[Finding]] = {}
    findings, failures = _found(read_ones)
    for finding in findings:
        by_path.setdefault(finding.path, []).append(finding)
    kept: list[Finding] = []
    baselines: dict[str, Baseline] = {}
    for source in read_ones:
        kept += _to_report(source, by_path.get(source.path, []), configs.at(source.path), baselines)
    problems = [*problems, *(problem for problem in every if isinstance(problem, Problem))]
    problems += [*failures, *(problem for source in read_ones for problem in source.problems)]
    return Report(sorted(kept), problems, {source.path: source for source in read_ones})


def _to_report(
    source: Source, findings: list[Finding], config: Config, baselines: dict[str, Baseline]
) -> list[Finding]:
    """Returns the findings in a file that are of its rules, not silenced, and not in its baseline."""
    if not findings and "noqa" not in source.text:
        return []  # so it is with most files
    codes = config.codes(source.path)
    own = [finding for finding in findings if finding.code in codes]
    kept = _noqa.unsilenced(source, own)
    if "TLX020" in codes and not source.problems:
        kept += _noqa.unused(source, own, lambda word: _means_only(word, codes))
    if config.baseline and kept:
        if config.baseline not in baselines:
            try:
                baselines[config.baseline] = Baseline.read(config.baseline)
            except BaselineError as error:
                raise ConfigError(str(error)) from None
        kept = baselines[config.baseline].new(source, kept)
    return kept


def _means_only(word: str, codes: frozenset[str]) -> bool:
    """Returns whether a word means rules, and all of them are among some."""
    meant = known_codes(word.upper() if word[:3].upper() == "TLX" else word)
    return bool(meant) and meant <= codes


def _found(sources: list[Source]) -> tuple[list[Finding], list[Problem]]:
    """Returns the findings of the rules; a file that is too much for them takes no other file with it."""
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
