# SPDX-License-Identifier: Apache-2.0
"""The settings of a project or a command line: `[tool.tallax.lint]` in `pyproject.toml`, `--select` and others."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

from tallax.lint._files import matches, relative
from tallax.lint.rules import RULES

_FILE = "pyproject.toml"
_TABLE = "tool.tallax.lint"
_LISTS = ("select", "extend-select", "ignore", "exclude")
_WORDS = {"baseline": "a path", "flax-version": 'a version such as "0.12"'}
_KEYS = (*_LISTS, "per-file-ignores", *_WORDS, "respect-gitignore")
_VERSION = re.compile(r"\d+(\.\d+)*\Z")


class ConfigError(ValueError):
    """A setting of a project or a command line is invalid."""

    @classmethod
    def of(cls, where: str, rule: str, got: str, fix: str) -> ConfigError:
        """Returns the error with its subject and rule, then the value found and the fix."""
        return cls(f"{where}: {rule}\n  got:  {got}\n  fix:  {fix}")


@dataclasses.dataclass(frozen=True)
class Config:
    """The selection of rules and files. Rules are named by code, by slug, or by the beginning of a code.

    Attributes:
        select: The rules that are applied; all if the tuple is empty.
        extend_select: Rules that are applied besides those.
        ignore: The rules among them that are not applied.
        exclude: Patterns of files and folders that are not read.
        per_file_ignores: Patterns of files, and the rules that are not applied to them.
        flax_version: The oldest version of Flax that the code has to work with, "0.11"; rules about later ones are not
            applied. Empty if only the newest version matters.
        baseline: The path of a file with findings that are not reported; empty if there is none.
        respect_gitignore: Whether to leave out the files that git ignores.
        root: The folder that patterns with a `/` start from.

    Raises:
        ConfigError: A rule is not known, or the version is not one.
    """

    select: tuple[str, ...] = ()
    extend_select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    per_file_ignores: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    flax_version: str = ""
    baseline: str = ""
    respect_gitignore: bool = True
    root: str = "."

    def __post_init__(self):
        lists = (("select", self.select), ("extend-select", self.extend_select), ("ignore", self.ignore))
        for where, words in (*lists, *self.per_file_ignores.items()):
            for word in words:
                codes_of(word, where)
        if self.flax_version and not _VERSION.match(self.flax_version):
            raise ConfigError.of("flax-version", "takes a version.", repr(self.flax_version), 'flax-version = "0.12"')

    def at(self, path: str) -> Config:
        """Returns the configuration for a file: this one, as for all files."""
        del path
        return self

    def codes(self, path: str) -> frozenset[str]:
        """Returns the codes of the rules that apply to a file."""
        ignored = list(self.ignore)
        if self.per_file_ignores:
            seen = relative(path, self.root)
            for pattern, words in self.per_file_ignores.items():
                if matches(pattern, seen):
                    ignored += words
        selected = frozenset().union(*map(codes_of, self.select)) if self.select else codes_of("TLX")
        selected = selected.union(*map(codes_of, self.extend_select))
        if self.flax_version:
            own = _numbers(self.flax_version)
            selected -= {rule.code for rule in RULES if rule.since and _numbers(rule.since) > own}
        return selected.difference(*map(codes_of, ignored))


class NearestConfigs:
    """For each file, the configuration that the nearest `pyproject.toml` above it asks for.

    Args:
        start: The path whose configuration says how folders are walked.
        change: Applied to each configuration, as for the options of a command line.
    """

    def __init__(self, start: str, change: Callable[[Config], Config] = lambda config: config):
        self._change = change
        self._by_folder: dict[str, Config] = {}
        self.start = self.at(start)

    def at(self, path: str) -> Config:
        """Returns the configuration for a file.

        Raises:
            ConfigError: The nearest `pyproject.toml` cannot be read, or asks for something unknown.
        """
        folder = os.path.abspath(path)
        if not os.path.isdir(folder):
            folder = os.path.dirname(folder)
        waiting = []  # no recursion: folders nest more deeply than calls may
        while folder not in self._by_folder:
            above = os.path.dirname(folder)
            table = _table(os.path.join(folder, _FILE))
            if table is not None:
                self._by_folder[folder] = self._change(_config(table, os.path.join(folder, _FILE), folder))
            elif above == folder:
                self._by_folder[folder] = self._change(Config(root=os.getcwd()))
            else:
                waiting.append(folder)
                folder = above
        self._by_folder.update(dict.fromkeys(waiting, self._by_folder[folder]))
        return self._by_folder[folder]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def codes_of(word: str, where: str = "tallax lint") -> frozenset[str]:
    """Returns the codes for a code, a slug or the beginning of a code.

    Raises:
        ConfigError: No rule matches.
    """
    codes = known_codes(word)
    if not codes:
        import difflib

        names = [name for rule in RULES for name in (rule.code, rule.slug)]
        near = difflib.get_close_matches(word, names, 3, 0.5)
        fix = f"{' or '.join(near)}; " if near else ""
        raise ConfigError.of(where, "no rule is called this.", repr(word), f"{fix}`tallax lint --list-rules` has all")
    return codes


def known_codes(word: str) -> frozenset[str]:
    """Like `codes_of`, but returns no codes if no rule matches, which is usual for a word in a `# noqa`."""
    return frozenset(rule.code for rule in RULES if word == rule.slug or (word and rule.code.startswith(word)))


def _table(path: str) -> Any:
    """Returns the linter's table of a file, or None."""
    try:
        with open(path, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ConfigError.of(path, "can't be read.", error.strerror or str(error), "chmod it, or --no-config") from None
    if b"tallax" not in data:
        return None
    import tomllib

    try:
        table: Any = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigError.of(path, "is not TOML.", str(error), "mend it, or --no-config") from None
    for name in _TABLE.split("."):
        table = table.get(name) if isinstance(table, dict) else None
    return table


def _config(table: Any, path: str, folder: str) -> Config:
    where = f"{path}: [{_TABLE}]"
    if not isinstance(table, dict):
        raise ConfigError.of(where, "is a table.", repr(table), f"[{_TABLE}] on a line of its own")
    for key in table:
        if key not in _KEYS:
            raise ConfigError.of(
                f"{where} {key}", "is not known.", f"{key} = {table[key]!r}", f"one of {', '.join(_KEYS)}"
            )
    lists = {key.replace("-", "_"): _strings(table.get(key, []), f"{where} {key}", key) for key in _LISTS}
    by_file = table.get("per-file-ignores", {})
    if not isinstance(by_file, dict):
        fix = 'per-file-ignores = { "tests/*" = ["TLX002"] }'
        raise ConfigError.of(f"{where} per-file-ignores", "is a table of patterns.", repr(by_file), fix)
    ignores = {
        pattern: _strings(words, f"{where} per-file-ignores {pattern!r}", f'"{pattern}"')
        for pattern, words in by_file.items()
    }
    words: dict[str, Any] = {
        key.replace("-", "_"): _word(table[key], f"{where} {key}", key) for key in _WORDS if key in table
    }
    if words.get("baseline"):
        words["baseline"] = os.path.join(folder, words["baseline"])
    respect = table.get("respect-gitignore", True)
    if not isinstance(respect, bool):
        where = f"{where} respect-gitignore"
        raise ConfigError.of(where, "is true or false.", repr(respect), "respect-gitignore = true")
    try:
        return Config(**lists, **words, per_file_ignores=ignores, respect_gitignore=respect, root=folder)
    except ConfigError as error:
        raise ConfigError(f"{where} {error}") from None


def _strings(value: Any, where: str, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        example = "build/*" if key == "exclude" else "TLX002"
        raise ConfigError.of(where, "is a list of strings.", repr(value), f'{key} = ["{example}"]')
    return tuple(value)


def _word(value: Any, where: str, key: str) -> str:
    if not isinstance(value, str):
        example = "0.12" if key == "flax-version" else "tallax-baseline.json"
        raise ConfigError.of(where, f"is {_WORDS[key]}.", repr(value), f'{key} = "{example}"')
    return value


@dataclasses.dataclass(frozen=True)
class Overrides:
    """The options of a command line, which take the place of a project's; None where an option was not given.

    `--select` also takes the place of the project's `ignore`: those who name rules want these rules. Patterns of a
    command line start from the current folder.
    """

    select: tuple[str, ...] | None = None
    extend_select: tuple[str, ...] | None = None
    ignore: tuple[str, ...] | None = None
    exclude: tuple[str, ...] | None = None
    flax_version: str | None = None
    baseline: str | None = None
    respect_gitignore: bool | None = None

    def __call__(self, config: Config) -> Config:
        """Returns a configuration with these options."""
        changes = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        changes = {name: value for name, value in changes.items() if value is not None}
        if self.select is not None:
            changes.setdefault("ignore", ())
            changes.setdefault("extend_select", ())
        if self.exclude is not None:
            here = relative(".", config.root)
            changes["exclude"] = tuple(f"{here}/{pattern}" if "/" in pattern else pattern for pattern in self.exclude)
        return dataclasses.replace(config, **changes)
