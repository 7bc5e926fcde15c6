# SPDX-License-Identifier: Apache-2.0
"""The settings of a project or a command line: `[tool.tallax.lint]` in `pyproject.toml`, `--select` and others."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

from tallax.lint._files import matches, relative
from tallax.lint.rules import RULES

_FILE = "pyproject.toml"
_TABLE = "tool.tallax.lint"
_LISTS = ("select", "ignore", "exclude")
_KEYS = (*_LISTS, "per-file-ignores")


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
        select: The rules that speak; all where none is named.
        ignore: Those of them that do not.
        exclude: Patterns of files and folders that are not looked at.
        per_file_ignores: Patterns of files, and the rules that do not speak of them.
        root: The folder that patterns with a `/` start from.

    Raises:
        ConfigError: a rule is not known.
    """

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    per_file_ignores: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    root: str = "."

    def __post_init__(self):
        names = (("select", self.select), ("ignore", self.ignore), *self.per_file_ignores.items())
        for where, words in names:
            for word in words:
                codes_of(word, where)

    def codes(self, path: str) -> frozenset[str]:
        """Returns the codes of the rules that apply to a file."""
        ignored = list(self.ignore)
        if self.per_file_ignores:
            seen = relative(path, self.root)
            for pattern, words in self.per_file_ignores.items():
                if matches(pattern, seen):
                    ignored += words
        selected = frozenset().union(*map(codes_of, self.select)) if self.select else codes_of("TLX")
        return selected.difference(*map(codes_of, ignored))


def codes_of(word: str, where: str = "tallax lint") -> frozenset[str]:
    """Returns the codes for a code, a slug or the beginning of a code.

    Raises:
        ConfigError: No rule matches.
    """
    codes = {rule.code for rule in RULES if word == rule.slug or (word and rule.code.startswith(word))}
    if not codes:
        import difflib

        names = [name for rule in RULES for name in (rule.code, rule.slug)]
        near = difflib.get_close_matches(word, names, 3, 0.5)
        fix = f"{' or '.join(near)}; " if near else ""
        raise ConfigError.of(where, "no rule is called this.", repr(word), f"{fix}`tallax lint --list-rules` has all")
    return frozenset(codes)


def config_above(path: str) -> Config:
    """Returns what the nearest `pyproject.toml` with a table `[tool.tallax.lint]` asks for, from a path upwards.

    Raises:
        ConfigError: it can't be read, or asks for what is not known.
    """
    folder = os.path.abspath(path)
    if not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    while True:
        table = _table(os.path.join(folder, _FILE))
        if table is not None:
            return _config(table, os.path.join(folder, _FILE), folder)
        above = os.path.dirname(folder)
        if above == folder:
            return Config(root=os.getcwd())
        folder = above


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
    lists = {key: _strings(table.get(key, []), f"{where} {key}", key) for key in _LISTS}
    by_file = table.get("per-file-ignores", {})
    if not isinstance(by_file, dict):
        fix = 'per-file-ignores = { "tests/*" = ["TLX002"] }'
        raise ConfigError.of(f"{where} per-file-ignores", "is a table of patterns.", repr(by_file), fix)
    ignores = {
        pattern: _strings(words, f"{where} per-file-ignores {pattern!r}", f'"{pattern}"')
        for pattern, words in by_file.items()
    }
    try:
        return Config(**lists, per_file_ignores=ignores, root=folder)
    except ConfigError as error:
        raise ConfigError(f"{where} {error}") from None


def _strings(value: Any, where: str, key: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        example = "build/*" if key == "exclude" else "TLX002"
        raise ConfigError.of(where, "is a list of strings.", repr(value), f'{key} = ["{example}"]')
    return tuple(value)


def overridden(
    config: Config, select: Sequence[str] | None, ignore: Sequence[str] | None, exclude: Sequence[str] | None
) -> Config:
    """Returns a configuration in which what a command line names stands in place of what a project asks for.

    Whoever selects on the command line wants these rules, so what the project ignores everywhere is no longer ignored.
    Patterns of a command line start from where one is.
    """
    changes: dict[str, Any] = {}
    if select is not None:
        changes = {"select": tuple(select), "ignore": ()}
    if ignore is not None:
        changes["ignore"] = tuple(ignore)
    if exclude is not None:
        here = relative(".", config.root)
        changes["exclude"] = tuple(f"{here}/{pattern}" if "/" in pattern else pattern for pattern in exclude)
    return dataclasses.replace(config, **changes)
