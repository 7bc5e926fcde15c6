# SPDX-License-Identifier: Apache-2.0
"""Finds mistakes with the state of Flax NNX models in source: `tallax lint PATH...`. Imports no JAX, runs no code.

Concepts
- A rule (`_rule`) is a code, a name and the text of its page. Its checks, in `rules/`, are functions that are called
  for the nodes, calls, classes or files for which they are registered in `_check.CHECKS`.
- A scope (`_index`) is a file, class or function with the names that it binds and the nodes that stand in it.
- A value (`_kinds`) is all that source tells about an expression: a Variable, an array, a module, a function. None
  means unknown, and a rule never reports what is unknown.
- A finding (`_finding`) is a place, a sentence and, if it is safe, the edits that fix it.

From a path to a report
1. `_cli` parses the options; `_config` finds the rules for each file in the nearest `pyproject.toml`.
2. `_files` lists the files, without those that `_gitignore` leaves out; `_reading` and `_notebook` decode them.
3. `_engine` picks the files that concern the rules and parses them (`_source`, `_newer_syntax`); `_syntax_walk` fills
   their scopes. `_project` and `_outline` look into the files that these import from.
4. The checks look expressions up in `_values`. It stands on `_expressions`, `_calls`, `_types` and `_classes`, which
   follow operators, calls, annotations and bases across files. `_settings` lists the assignments to attributes of
   `self`; `_dtypes` knows the arrays, by the functions in `_array_names`.
5. `_lint` leaves out findings that `_noqa` or a `_baseline` silences; `_output` prints the others, `_fixes` applies the
   edits, and `_add_noqa` adds comments.

To add a rule, write a file in `rules/`, list it in `rules/__init__.py`, and add `tests/lint_cases/CODE.py` with lines
that it reports and lines that it must not; `make pages` writes its page. If a rule needs more facts about expressions,
extend `_values` or `_dtypes`, not the rule. If it needs to know where code runs, see `_steps` and `_outside_changes`.

The invariant: unknown is silent. A wrong finding costs more than a missed one, so a value that joins two different ones
becomes None. `tests/test_lint_cases.py` guards it line by line, `benchmarks/lint_labels.py` on labelled repositories.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallax.lint._config import Config as Config
    from tallax.lint._config import ConfigError as ConfigError
    from tallax.lint._finding import Edit as Edit
    from tallax.lint._finding import Finding as Finding
    from tallax.lint._lint import Report as Report
    from tallax.lint._lint import lint as lint
    from tallax.lint._rule import Rule as Rule
    from tallax.lint._source import Problem as Problem

# Imported when they are asked for: `python -m tallax.lint` runs this file first, and a Ctrl-C during the imports would
# end in a traceback that `__main__` could not catch.
_MODULES = {
    "Config": "_config",
    "ConfigError": "_config",
    "Edit": "_finding",
    "Finding": "_finding",
    "Report": "_lint",
    "lint": "_lint",
    "Rule": "_rule",
    "Problem": "_source",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
