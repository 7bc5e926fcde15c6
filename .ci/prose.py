# SPDX-License-Identifier: Apache-2.0
"""Counts constructions that read as translated, per 1,000 words, in docs, docstrings, comments and messages.

The limits stand in `.ci/prose.json`. A change may not make a count worse than its limit. `--update` replaces a limit by
today's count if that is better, so a limit only ever moves in one direction.
"""

from __future__ import annotations

import ast
import io
import json
import pathlib
import re
import sys
import tokenize
from collections.abc import Iterator

ROOT = pathlib.Path(__file__).resolve().parent.parent
LIMITS = ROOT / ".ci" / "prose.json"
MESSAGE = re.compile(r"\w*Error|kind|error|compose|laid_out|format_error")  # calls that lay errors out, with `fix=`
START = "\x00"  # of a docstring
TOLERANCE = 0.05  # so that a removed sentence without "you" fails no build

# Counts that should be low, and counts that should be high.
AT_MOST = {
    "what": r"\bwhat(?:ever)?\b",
    "says, tells, asks": r"\b(?:says?|said|tells?|told|asks?|asked)\b",
    "is no, is none": r"\b(?:is|are|was|were) (?:no|none)\b",
    "opens with What, Which, Where, How": START + r"(?:What|Which|Where|How|Whether)\b",
}
AT_LEAST = {
    "you": r"\byour?\b",
    "if, when, because, for example": r"\b(?:if|when|because)\b|\bfor example\b",
}
# An area that lacks a count is not measured by it: messages are too short for conditions.
AREAS = {
    "docs": {*AT_MOST, *AT_LEAST} - {"opens with What, Which, Where, How"},
    "source": {*AT_MOST, "if, when, because, for example"},
    "messages": {"what", "says, tells, asks", "is no, is none"},
}


def docs() -> Iterator[str]:
    """Yields the text of every page, without code, addresses and markup."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        text = re.sub(r"^(`{3,}|~{3,}).*?^\1", "", path.read_text(), flags=re.DOTALL | re.MULTILINE)
        text = re.sub(r"<[^>]+>|\]\([^)]*\)|`[^`]*`", " ", text)
        yield re.sub(r"[.!]\s+(?=What\b)(?=[^.!]*\?)[^?]*\?", ". ", text)  # a question may ask for something


def files() -> list[pathlib.Path]:
    """Returns the source, without the exercise's files, which become their readers' own."""
    return [
        path
        for path in sorted((ROOT / "src" / "tallax").rglob("*.py"))
        if not {"exercise", "exercises"} & {*path.parts}
    ]


def source() -> Iterator[str]:
    """Yields every docstring and comment, without code; each starts with a mark."""
    for path in files():
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring:
                    docstring = re.sub(
                        r"^\s*(?:>>>|\.\.\.).*$|```.*?```", "", docstring, flags=re.DOTALL & 0 | re.MULTILINE
                    )
                    yield "\x00" + re.sub(r"`[^`]*`", " ", docstring)
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and not re.match(r"#\s*(?:SPDX|noqa|pyright|type:|fmt:|!)", token.string):
                yield re.sub(r"`[^`]*`", " ", token.string.lstrip("# "))


def messages() -> Iterator[str]:
    """Yields the sentences of errors."""
    for path in files():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and MESSAGE.fullmatch(
                getattr(node.func, "id", getattr(node.func, "attr", ""))
            ):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                        yield inner.value


def per_1000_words(text: str, area: str) -> dict[str, float]:
    """Returns how often a text uses each construction that is counted in an area, per 1,000 words."""
    words = len(re.findall(r"[A-Za-z][\w'-]*", text))
    found = {}
    for name, pattern in (AT_MOST | AT_LEAST).items():
        if name in AREAS[area]:
            flags = re.NOFLAG if pattern.startswith(START) else re.IGNORECASE
            found[name] = round(1000 * len(re.findall(pattern, text, flags)) / words, 2)
    return found


def measured() -> dict[str, dict[str, float]]:
    """Returns the counts of the whole tree, by area and construction."""
    areas = {"docs": docs(), "source": source(), "messages": messages()}
    return {area: per_1000_words("\n".join(texts), area) for area, texts in areas.items()}


def worse(count: float, limit: float, name: str) -> bool:
    """Returns whether a count is worse than its limit."""
    return count > limit * (1 + TOLERANCE) if name in AT_MOST else count < limit * (1 - TOLERANCE)


def main() -> int:
    """Prints the counts beside their limits; returns 1 if one is worse than its limit."""
    limits, now, failed = json.loads(LIMITS.read_text()), measured(), False
    for area, counts in now.items():
        for name, count in counts.items():
            limit = limits.setdefault(area, {}).get(name, count)
            is_upper, is_worse = name in AT_MOST, worse(count, limit, name)
            failed |= is_worse
            bound = "at most" if is_upper else "at least"
            print(f"{'WORSE ' if is_worse else '      '}{area:9}{name:36}{count:7.2f}   {bound} {limit:.2f}")
            limits[area][name] = min(limit, count) if is_upper else max(limit, count)
    if "--update" in sys.argv:
        LIMITS.write_text(json.dumps(limits, indent=2) + "\n")
    if failed:
        print("Counts are per 1,000 words. CONTRIBUTING.md explains how to write instead.")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
