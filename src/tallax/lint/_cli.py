# SPDX-License-Identifier: Apache-2.0
"""The command line: `tallax lint PATH...`, which is also `python -m tallax.lint PATH...`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tallax.lint._source import Problem

# The rules are imported only after the options are parsed: that takes longer than all of `--help`.
if TYPE_CHECKING:
    from tallax.lint._fixes import Change
    from tallax.lint._lint import Configs, Report

_EPILOG = """\
Exits with 0 if nothing is found, with 1 if something is found or a file cannot be parsed, and with 2 if it could not
run as asked: a wrong option or configuration, a missing path, a file that cannot be read or written.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a path may be no text at all
    try:
        parser = _parser()
        status = _main(parser, parser.parse_args(arguments))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # `| head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # the current folder, or the output, cannot be used
        print(f"tallax lint: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _main(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from tallax.lint._config import ConfigError

    try:
        return _run(parser, options)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2


def _run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> int:
    from tallax.lint import _lint
    from tallax.lint._config import codes_of
    from tallax.lint._reading import decoded

    if options.list_rules or options.explain is not None:
        from tallax.lint import _explain

        codes = () if options.explain is None else codes_of(options.explain, "--explain")
        explained = "\n".join(_explain.explained(rule) for rule in _explain.RULES if rule.code in codes)
        sys.stdout.write(explained if codes else _explain.listed())
        return 0
    paths = options.paths or ["."]
    piped = "-" in paths
    writing = options.fix or options.add_noqa
    if piped and (len(paths) > 1 or writing):
        parser.error("`-` reads one file from standard input, without other paths, --fix and --add-noqa")
    if options.stdin_filename and not piped:
        parser.error("--stdin-filename names the file that `-` reads")
    name = options.stdin_filename or "-"
    configs = _configs(options, (options.stdin_filename or ".") if piped else paths[0])
    if piped:
        report = _lint.judged([decoded(name, sys.stdin.buffer.read())], configs)
    else:
        report = _lint.linted(paths, configs)
    if options.write_baseline:
        from tallax.lint import _baseline

        count = _baseline.write(options.write_baseline, report.findings, report.sources)
        _show_problems(report.problems)
        print(f"Wrote {_count(count, 'finding')} to {options.write_baseline}.", file=sys.stderr)
        return max([0, *(problem.status for problem in report.problems)])
    if options.add_noqa:
        from tallax.lint import _add_noqa

        changes, problems = _add_noqa.silenced(report)
        problems += _written(changes, paths)
        _show_problems([*report.problems, *problems])
        _show_changes("comment", "added", changes)
        return max([0, *(problem.status for problem in (*report.problems, *problems))])
    if options.fix or options.diff:
        return _fixed(report, configs, options, paths)
    _show(report, options)
    _summarize(report)
    return report.status


def _configs(options: argparse.Namespace, start: str) -> Configs:
    """Returns the configurations of a project, with the options in place of its settings."""
    from tallax.lint._config import Config, NearestConfigs, Overrides

    lists = ("select", "extend_select", "ignore", "exclude")
    given = {key: tuple(value) for key in lists if (value := getattr(options, key)) is not None}
    baseline = os.path.abspath(options.baseline) if options.baseline else None
    change = Overrides(
        **given,
        flax_version=options.flax_version,
        baseline="" if options.write_baseline else baseline,
        respect_gitignore=False if options.no_gitignore else None,
    )
    return change(Config(root=os.getcwd())) if options.no_config else NearestConfigs(start, change)


def _fixed(report: Report, configs: Configs, options: argparse.Namespace, paths: Sequence[str]) -> int:
    """Writes the fixes, or shows the difference, and returns the exit status."""
    from tallax.lint import _fixes

    changes, after = _fixes.mended(report, configs)
    if options.diff:
        for path, change in changes.items():
            sys.stdout.write(_fixes.diff(path, change))
        _show_problems(after.problems)
        _show_changes("problem", "would be fixed", changes)
        return max(report.status, after.status)
    after.problems.extend(_written(changes, paths))
    _show(after, options)
    _show_changes("problem", "fixed", changes)
    _summarize(after)
    return after.status


def _written(changes: dict[str, Change], paths: Sequence[str]) -> list[Problem]:
    """Writes files, and returns the problems; a file that could not be written is taken out of the changes."""
    from tallax.lint import _fixes

    problems = []
    roots = _fixes.roots_of(paths)
    for path, change in list(changes.items()):
        problem = _fixes.write(path, change, roots)
        if problem is not None:
            problems.append(problem)
            del changes[path]
    return problems


def _show(report: Report, options: argparse.Namespace) -> None:
    from tallax.lint import _output

    if options.statistics:
        sys.stdout.write(_output.statistics(report))
    elif options.format == "text":
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        sys.stdout.write(_output.text(report, coloured=coloured))
    else:
        sys.stdout.write(_output.FORMATS[options.format](report))
    if options.statistics or options.format not in _output.WITH_PROBLEMS:
        _show_problems(report.problems)


def _show_problems(problems: Sequence[Problem]) -> None:
    sys.stdout.flush()  # if both streams go to one place, the order is kept
    for problem in problems:
        print(problem, file=sys.stderr)


def _show_changes(noun: str, verb: str, changes: Mapping[str, Change]) -> None:
    count = sum(change.mended for change in changes.values())
    print(f"{_count(count, noun)} in {_count(len(changes), 'file')} {verb}.", file=sys.stderr)


def _summarize(report: Report) -> None:
    sys.stdout.flush()
    mendable = sum(finding.fixable for finding in report.findings)
    hint = f", {mendable} of which --fix can fix" if mendable else ""
    files = _count(len(report.sources), "file")
    print(f"Found {_count(len(report.findings), 'problem')} in {files}{hint}.", file=sys.stderr)


def _count(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tallax lint",
        description="Find in source what goes wrong with the state of Flax NNX models. Imports no JAX, runs no code.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("paths", metavar="PATH", nargs="*", help="files, notebooks and folders, by default this one; - reads one file")
    add("--fix", action="store_true", help="fix the findings that have a safe fix")
    add("--diff", action="store_true", help="show the changes of --fix, and write nothing")
    add("--add-noqa", action="store_true", help="silence all findings with comments")
    add("--baseline", metavar="FILE", help="do not report the findings in this file")
    add("--write-baseline", metavar="FILE", help="write all findings to this file, and report none")
    add("--format", choices=("text", "json", "github", "sarif"), default="text", help="of the report")
    add("--select", type=_words, action="extend", metavar="RULES", help="only these: codes, beginnings of codes, names")
    add("--extend-select", type=_words, action="extend", metavar="RULES", help="these besides the selected ones")
    add("--ignore", type=_words, action="extend", metavar="RULES", help="none of these")
    add("--exclude", type=_words, action="extend", metavar="PATTERNS", help="files and folders to leave out")
    add("--flax-version", metavar="VERSION", help="the oldest Flax that the code runs with: no rules about later ones")
    add("--no-gitignore", action="store_true", help="read files that git ignores")
    add("--no-config", action="store_true", help="do not read [tool.tallax.lint] in pyproject.toml")
    add("--stdin-filename", metavar="PATH", help="the file that - reads, for its configuration and imports")
    add("--statistics", action="store_true", help="print how often each rule reports, instead of the places")
    add("--explain", metavar="RULE", help="print what a rule finds, why, and what to write instead")
    add("--list-rules", action="store_true", help="print all rules")
    return parser


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
