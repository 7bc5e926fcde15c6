# SPDX-License-Identifier: Apache-2.0
"""The command line: `tallax lint PATH...`, which is also `python -m tallax.lint PATH...`."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tallax.lint import _lint
from tallax.lint._config import Config, ConfigError, codes_of, config_above, overridden
from tallax.lint._lint import Report
from tallax.lint._reading import decoded
from tallax.lint._source import Problem

if TYPE_CHECKING:
    from tallax.lint._fixes import Change

_EPILOG = """\
Exits with 0 if nothing is found, with 1 if something is or if a file can't be parsed, and with 2 if it could not do
what it was asked for: a wrong option or configuration, a path that is not there, a file that can't be read or written.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a path may be no text at all
    try:
        status = _main(arguments)
        sys.stdout.flush()
        return status
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # the current folder, or the output, cannot be used
        print(f"tallax lint: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _main(arguments: Sequence[str] | None) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.list_rules or options.explain is not None:
        from tallax.lint import _explain

        codes = () if options.explain is None else codes_of(options.explain, "--explain")
        explained = "\n".join(_explain.explained(rule) for rule in _explain.RULES if rule.code in codes)
        sys.stdout.write(explained if codes else _explain.listed())
        return 0
    paths = options.paths or ["."]
    piped = "-" in paths
    if piped and (len(paths) > 1 or options.fix):
        parser.error("`-` reads one file from standard input, and goes neither with other paths nor with --fix")
    config = Config(root=os.getcwd()) if options.no_config else config_above("." if piped else paths[0])
    config = overridden(config, options.select, options.ignore, options.exclude)
    if piped:
        report = _lint.judged([decoded("-", sys.stdin.buffer.read())], config)
    else:
        report = _lint.lint(paths, config)
    if options.fix or options.diff:
        return _mended(report, config, options)
    _show(report, options)
    _summarize(report)
    return report.status


def _mended(report: Report, config: Config, options: argparse.Namespace) -> int:
    """Writes what can be mended, or shows the difference, and returns the exit status."""
    from tallax.lint import _fixes

    changes, after = _fixes.mended(report, config)
    if options.diff:
        for path, change in changes.items():
            sys.stdout.write(_fixes.diff(path, change))
        _say_problems(after.problems)
        _say_mended("would be mended", changes)
        return max(report.status, after.status)
    for path, change in list(changes.items()):
        problem = _fixes.write(path, change)
        if problem is not None:
            after.problems.append(problem)
            del changes[path]
    _show(after, options)
    _say_mended("mended", changes)
    _summarize(after)
    return after.status


def _show(report: Report, options: argparse.Namespace) -> None:
    from tallax.lint import _output

    if options.statistics:
        sys.stdout.write(_output.statistics(report))
    elif options.format == "text":
        coloured = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
        sys.stdout.write(_output.text(report, coloured=coloured))
    else:
        sys.stdout.write(_output.FORMATS[options.format](report))
    if options.statistics or options.format not in _output.SAYS_PROBLEMS:
        _say_problems(report.problems)


def _say_problems(problems: Sequence[Problem]) -> None:
    sys.stdout.flush()  # where both streams go to one place, the order is kept
    for problem in problems:
        print(problem, file=sys.stderr)


def _say_mended(verb: str, changes: Mapping[str, Change]) -> None:
    count = sum(change.mended for change in changes.values())
    print(f"{_of(count, 'problem')} in {_of(len(changes), 'file')} {verb}.", file=sys.stderr)


def _summarize(report: Report) -> None:
    sys.stdout.flush()
    mendable = sum(finding.fixable for finding in report.findings)
    hint = f", {mendable} of which --fix mends" if mendable else ""
    files = _of(len(report.sources), "file")
    print(f"Found {_of(len(report.findings), 'problem')} in {files}{hint}.", file=sys.stderr)


def _of(count: int, what: str) -> str:
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tallax lint",
        description="Find in source what goes wrong with the state of Flax NNX models. Imports no JAX, runs no code.",
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("paths", metavar="PATH", nargs="*", help="files, notebooks and folders, by default this one; - reads one file")
    add("--fix", action="store_true", help="mend what can be mended safely")
    add("--diff", action="store_true", help="show what --fix would do, and write nothing")
    add("--format", choices=("text", "json", "github", "sarif"), default="text", help="of what is printed")
    add("--select", type=_words, action="extend", metavar="RULES", help="only these: codes, beginnings of codes, names")
    add("--ignore", type=_words, action="extend", metavar="RULES", help="none of these")
    add("--exclude", type=_words, action="extend", metavar="PATTERNS", help="files and folders to leave out")
    add("--no-config", action="store_true", help="do not read [tool.tallax.lint] in pyproject.toml")
    add("--statistics", action="store_true", help="print how often each rule speaks, instead of where")
    add("--explain", metavar="RULE", help="print what a rule finds, why, and what to write instead")
    add("--list-rules", action="store_true", help="print all rules")
    return parser


def _words(text: str) -> list[str]:
    return [word.strip() for word in text.split(",") if word.strip()]
