# SPDX-License-Identifier: Apache-2.0
"""Explains a rule, on a terminal or as a page. `python -m tallax.lint._explain docs/lint` writes all pages."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator

from tallax.lint._rule import Rule
from tallax.lint.rules import RULES

_INDEX = """\
# The rules of `tallax lint`

`tallax lint PATH...` reads Python files, notebooks and folders of them, and reports mistakes with the state of your
models. It runs none of your code and imports no JAX. If you want to read about a rule in the terminal, run `tallax
lint --explain TLX002`. `--fix` applies the fixes that are safe; `--diff` shows them first.

{rows}
If a rule names a version of Flax, the mistake exists since that version. If your code has to work with an older one,
set `flax-version`.

## To silence a rule

- on a line, or in the whole statement that ends there: `# noqa: TLX002`, or the beginning of codes. If you name no
  code, all rules are silent there. `tallax lint --add-noqa` writes these comments for you.
- in a file: `# tallax: noqa: TLX002, host-sync` on a line of its own, or `# tallax: skip-file` among the first ten
  lines
- for all findings that you have today: [a baseline](../linting.md#if-your-project-has-findings-already)
- in your project, by code, by name or by the beginning of a code, in its `pyproject.toml`:

```toml
[tool.tallax.lint]
select = ["TLX00", "plain-container"]    # all rules if you leave it out
extend-select = ["TLX017"]
ignore = ["TLX006"]
exclude = ["third_party", "*_pb2.py"]
per-file-ignores = {{ "tests/*" = ["host-sync"] }}
flax-version = "0.11"
baseline = "tallax-baseline.json"
respect-gitignore = true
```

Each file obeys the nearest `pyproject.toml` above it that has this table. If a pattern has no `/`, it is compared
with the names of files and folders; if it has one, with paths from the folder of that file, and `*` also matches a
`/`. If you use `--select`, `--extend-select`, `--ignore`, `--exclude`, `--flax-version` or `--baseline`, the option
replaces the setting. Files that git ignores are left out, unless you name them or pass `--no-gitignore`.

## In other tools

`--format` is `text`, `json`, `github` (annotations) or `sarif`. JSON is one object: `findings`, a list of objects
with `path`, `line`, `column`, `end_line`, `end_column`, `code`, `slug`, `message`, `fixable`, `url`, and in notebooks
`cell`; `problems`, the files that were skipped and the reasons; and `files`, the number that was read. Columns count
from 1, in UTF-8 bytes; SARIF counts characters. `url` is null if the installed package names no documentation.

The exit status is 0 if nothing is found, 1 if something is found or a file cannot be parsed, and 2 if it could not
run as you asked: a wrong option or setting, a missing path, a file that cannot be read or written. If a link leads
out of the folders that you named, `--fix` does not write through it.

If your file uses the syntax of a newer Python than the one that runs, type parameters, type aliases and `except A,
B:` are read all the same. For nested quotes in f-strings, run the linter with that Python.

If you use ruff, add `external = ["TLX"]` below `[tool.ruff.lint]`: otherwise it removes `noqa` comments with codes
that it does not know.

For pre-commit there are the hooks `tallax-lint` and `tallax-lint-fix`. For editors, see [the
recipes](../linting.md#in-your-editor-and-in-ci).
"""


def explained(rule: Rule) -> str:
    """Returns the explanation of a rule for a terminal."""
    parts = [f"{rule.code} [{rule.slug}]  {rule.title}", rule.why.strip()]
    parts += [f"{label}:\n\n{textwrap.indent(code.strip(), '    ')}" for label, code in _examples(rule)]
    parts += [f"{label}: {said.strip()}" for label, said in _remarks(rule)]
    return "\n\n".join([*parts, f"To silence a line: # noqa: {rule.code}"]) + "\n"


def page(rule: Rule) -> str:
    """Returns a rule's page, in Markdown."""
    parts = [f"# {rule.code}: {rule.title}", f"`{rule.slug}`", rule.why.strip()]
    parts += [f"## {label}\n\n```python\n{code.strip()}\n```" for label, code in _examples(rule)]
    parts += [f"**{label}:** {said.strip()}" for label, said in _remarks(rule)]
    keep = f"If you want to keep a line as it is, end it with `# noqa: {rule.code}`. All rules: [index](index.md)."
    return "\n\n".join([*parts, keep]) + "\n"


def pages() -> dict[str, str]:
    """Returns every page, by the name of its file."""
    rows = ["| code | name | what it finds | `--fix` |", "|---|---|---|---|"]
    rows += [
        f"| [{rule.code}]({rule.code}.md) | `{rule.slug}` | {rule.title} | {'yes' if rule.fix else ''} |"
        for rule in RULES
    ]
    index = _INDEX.format(rows="\n".join(rows) + "\n")
    return {"index.md": index, **{f"{rule.code}.md": page(rule) for rule in RULES}}


def listed() -> str:
    """Returns a line for each rule."""
    width = max(len(rule.slug) for rule in RULES)
    return "".join(
        f"{rule.code}  {rule.slug:<{width}}  {rule.title}{' (--fix)' if rule.fix else ''}\n" for rule in RULES
    )


def _examples(rule: Rule) -> Iterator[tuple[str, str]]:
    yield "Example", rule.bad
    yield "Use instead", rule.good


def _remarks(rule: Rule) -> Iterator[tuple[str, str]]:
    if rule.fix:
        yield "Fix", rule.fix
    if rule.misses:
        yield "Not reported", rule.misses


def _write(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    for name, content in pages().items():
        with open(os.path.join(folder, name), "w", encoding="utf-8", newline="\n") as file:
            file.write(content)


if __name__ == "__main__":
    _write(sys.argv[1])
