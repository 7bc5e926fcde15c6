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

`tallax lint PATH...` reads Python files, notebooks and what lies below folders, and says what goes wrong with the state
of the models there. It runs none of that code and imports no JAX. `tallax lint --explain TLX002` prints a rule's page;
`--fix` mends what can be mended safely, `--diff` shows what it would do.

{rows}
## To silence a rule

- on a line, or in the whole of the statement that the line ends: `# noqa: TLX002`, or the beginning of codes; a
  `# noqa` without codes means all
- in a file: `# tallax: skip-file` as a comment of its own among the first ten lines
- in a project, by code, by name or by the beginning of a code, in its `pyproject.toml`:

```toml
[tool.tallax.lint]
select = ["TLX"]
ignore = ["TLX006"]
exclude = ["third_party", "*_pb2.py"]
per-file-ignores = {{ "tests/*" = ["host-sync"] }}
```

A pattern without a `/` is compared with the names of files and folders, one with a `/` with paths from the folder of
that file; `*` also stands for a `/`. `--select`, `--ignore` and `--exclude` take the place of what stands there.

## In other tools

`--format` is `text`, `json` (one list of objects with `path`, `line`, `column`, `code`, `slug`, `message`, `fixable`,
and in notebooks `cell`), `github` (annotations) or `sarif`. Columns count from 1, in UTF-8 bytes; SARIF has characters.

The exit status is 0 if nothing is found, 1 if something is or if a file can't be parsed, and 2 if it could not do what
it was asked for: a wrong option or configuration, a path that is not there, a file that can't be read or written.

ruff takes `noqa` comments with codes that it does not know for useless ones, and removes them; it leaves those alone
when told: `external = ["TLX"]` below `[tool.ruff.lint]`.

For pre-commit there are the hooks `tallax-lint` and `tallax-lint-fix`.
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
    return "\n\n".join([*parts, f"To silence a line: `# noqa: {rule.code}`. All rules: [index](index.md)."]) + "\n"


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
    yield "Bad", rule.bad
    yield "Good", rule.good


def _remarks(rule: Rule) -> Iterator[tuple[str, str]]:
    if rule.fix:
        yield "What --fix does", rule.fix
    if rule.misses:
        yield "What it leaves alone", rule.misses


def _write(folder: str) -> None:
    os.makedirs(folder, exist_ok=True)
    for name, content in pages().items():
        with open(os.path.join(folder, name), "w", encoding="utf-8", newline="\n") as file:
            file.write(content)


if __name__ == "__main__":
    _write(sys.argv[1])
