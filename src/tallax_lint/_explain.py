# SPDX-License-Identifier: Apache-2.0
"""What a rule teaches, for a terminal and as a page: `python -m tallax_lint._explain docs/lint` writes all pages."""

from __future__ import annotations

import os
import sys
import textwrap
from collections.abc import Iterator

from tallax_lint._rule import Rule
from tallax_lint.rules import RULES

_INDEX = """\
# The rules of `tallax lint`

Written from the rules themselves by `make pages`; `tallax lint --explain TLX002` prints the same. A rule is silenced on
a line by `# noqa: TLX002`, in some files by `per-file-ignores` and everywhere by `ignore` in `[tool.tallax.lint]`.

| code | name | what it finds | `--fix` |
|---|---|---|---|
"""


def explained(rule: Rule) -> str:
    """Returns what a terminal shows of a rule."""
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
    rows = "".join(
        f"| [{rule.code}]({rule.code}.md) | `{rule.slug}` | {rule.title} | {'yes' if rule.fix else ''} |\n"
        for rule in RULES
    )
    return {"index.md": _INDEX + rows, **{f"{rule.code}.md": page(rule) for rule in RULES}}


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
