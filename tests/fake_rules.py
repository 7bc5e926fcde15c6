# SPDX-License-Identifier: Apache-2.0
"""Rules that look for words, so that what surrounds the linter's rules is tested whatever these say."""

from __future__ import annotations

import re

from tallax.lint import Edit, Finding, Rule, _cli, _config, _engine, _explain, _output

RULES = tuple(
    Rule(
        code=code,
        slug=slug,
        title=title,
        reports="Calls.\n",
        why=f"Why {slug}.\n",
        bad="bad = 1\n",
        good="good = 1\n",
        fix=fix,
    )
    for code, slug, title, fix in (
        ("TLX001", "param-state", "State kept as nnx.Param", ""),
        ("TLX002", "replaced-variable", "A Variable is replaced", "Writes into it."),
        ("TLX012", "odd-one", "Something odd", ""),
    )
)
_SLUGS = {rule.code: rule.slug for rule in RULES}
# What a line says, whose finding that is, and what stands there afterwards.
_WORDS = (
    ("TLX001", r"PARAM", None),
    ("TLX002", r"\w+(?= \+= 1)", r"\g<0>[...]"),
    ("TLX002", r"FLIP", "FLOP"),
    ("TLX002", r"FLOP", "FLIP"),
    ("TLX002", r"BREAK", "("),
    ("TLX002", r"IMPORT", "import a\nimport b"),
    ("TLX012", r"ODD", None),
)


def findings_in(sources):
    """Stands in for the engine."""
    return sorted(finding for source in sources if source.parse() is not None for finding in _of(source))


def _of(source):
    if "CRASH" in source.text:
        raise KeyError("gone")
    if "DEEP" in source.text:
        raise RecursionError
    for number, line in enumerate(source.lines(), 1):
        for code, pattern, replacement in _WORDS:
            for match in re.finditer(pattern, line):
                start, end = (len(line[:k].encode()) for k in match.span())
                edits = ()
                if replacement is not None:
                    edits = (Edit(number, start, number, end, match.expand(replacement)),)
                message = f"100% {match[0]}, here: or not"
                yield Finding(source.path, number, start + 1, code, _SLUGS[code], message, edits, number, end + 1)


def install(monkeypatch):
    """Puts these rules in place of the real ones."""
    monkeypatch.setattr(_engine, "findings_in", findings_in)
    for module in (_config, _explain, _output):
        monkeypatch.setattr(module, "RULES", RULES)


def ran(capsys, *arguments):
    """Returns the status, the lines printed, and the lines of the error stream but for the summary."""
    status = _cli.main([*map(str, arguments)])
    output, errors = capsys.readouterr()
    return status, output.splitlines(), [line for line in errors.splitlines() if not re.match(r"Found \d", line)]


def notebook(*cells):
    """Returns what a notebook's file holds."""
    import json

    made = [
        {"cell_type": kind, "metadata": {}, "source": code.splitlines(keepends=True)}
        | ({"execution_count": None, "outputs": []} if kind == "code" else {})
        for kind, code in cells
    ]
    return json.dumps({"cells": made, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}, indent=1) + "\n"
