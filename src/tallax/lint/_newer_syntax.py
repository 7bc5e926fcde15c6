# SPDX-License-Identifier: Apache-2.0
"""Source in the syntax of a newer Python than the one that runs, rewritten so that this one parses it.

Positions stay as they are: every piece that is left out is replaced by as many spaces. What a type parameter or alias
says is lost, and no rule asks for it. Nested quotes and backslashes in f-strings (Python 3.12) become other quotes and
underscores, and template strings (3.14) become f-strings. An f-string with a comment or a line end in its braces cannot
be rewritten in this way, so the message names the Python that it needs.
"""

from __future__ import annotations

import re

_WITH_PARAMETERS = re.compile(r"^([ \t]*(?:async[ \t]+)?(?:def|class|type)[ \t]+\w+)[ \t]*\[", re.MULTILINE)
_ALIAS = re.compile(r"^([ \t]*)type[ \t]+([^\W\d]\w*)[ \t]*=(?!=)", re.MULTILINE)
_EXCEPT = re.compile(r"^([ \t]*except\*?) +([\w.]+(?:[ \t]*,[ \t]*[\w.]+)+)[ \t]*:", re.MULTILINE)


# A comment, or the prefix and the quotes of a string.
_COMMENT_OR_STRING = re.compile(r"""#[^\n]*|([A-Za-z]*)(\"{3}|'{3}|"|')""")
_WITH_BRACES = {"f", "fr", "rf", "t", "tr", "rt"}
_TEMPLATE = re.compile(r"""(?<!\w)(?:[tT][rR]?|[rR][tT])["']""")
_OPEN_BRACE = re.compile(r"""(?<!\w)(?:[fF][rR]?|[rR][fF])(["'])[^{}"']*\{[^{}]*$""")  # at the end of its line


def python_needed(line: str, complaint: str) -> str:
    """Returns the Python whose syntax a line that does not parse may be in; empty if nothing suggests a newer one."""
    if _TEMPLATE.search(line):
        return "3.14"
    return "3.12" if complaint.startswith("f-string") or _OPEN_BRACE.search(line) else ""


def in_older_syntax(text: str) -> str:
    """Returns source without type parameters, type aliases, `except A, B:` and nested quotes, each line as long as
    before.
    """
    text = _with_older_strings(_without_parameters(text))
    text = _ALIAS.sub(_as_assignment, text)
    return _EXCEPT.sub(_in_parentheses, text)


def _without_parameters(text: str) -> str:
    """Blanks `[T: int]` behind the name of a function, class or type alias."""
    pieces: list[str] = []
    done = 0
    for found in _WITH_PARAMETERS.finditer(text):
        start = end = found.end() - 1
        depth = 0
        while end < len(text):
            depth += {"[": 1, "]": -1}.get(text[end], 0)
            end += 1
            if not depth:
                break
        if start >= done:
            blank = re.sub(r"[^\n]", " ", text[start:end])
            pieces += text[done:start], blank.replace(" \n", "\\\n")
            done = end
    return "".join([*pieces, text[done:]])


def _as_assignment(found: re.Match[str]) -> str:
    """Returns `X     =` for `type X =`."""
    line = found.group(0)
    return f"{found[1]}{found[2]}".ljust(len(line) - 1) + "="


def _in_parentheses(found: re.Match[str]) -> str:
    """Returns `except(A,B):` for `except A, B:`, as long as before if there is a space to spare."""
    line = found.group(0)
    names = ",".join(name.strip() for name in found[2].split(","))
    return f"{found[1]}({names}".ljust(len(line) - 2) + "):"


def _with_older_strings(text: str) -> str:
    """Returns source with strings whose braces hold neither their own quotes nor backslashes, and without templates."""
    signs = list(text)
    start = 0
    while found := _COMMENT_OR_STRING.search(text, start):
        start = found.end()
        prefix, quote = (found[1] or "").lower(), found[2]
        if quote and prefix in _WITH_BRACES:
            for k in range(*found.span(1)):
                signs[k] = {"t": "f", "T": "F"}.get(text[k], text[k])
            start = _end_of_braced(text, start, quote, signs)
        elif quote:
            start = _end_of_plain(text, start, quote)
    return "".join(signs)


def _end_of_plain(text: str, start: int, quote: str) -> int:
    """Returns the place behind a string without braces that matter."""
    while start < len(text) and not text.startswith(quote, start):
        start += 2 if text[start] == "\\" else 1
    return start + len(quote)


def _end_of_braced(text: str, start: int, quote: str, signs: list[str] | None) -> int:
    """Returns the place behind an f-string or template string, and rewrites the strings in its braces."""
    depth = 0  # of brackets
    while start < len(text):
        sign = text[start]
        if not depth and text.startswith(quote, start):
            return start + len(quote)
        if not depth and (sign == "\\" or text.startswith(("{{", "}}"), start)):
            start += 2
            continue
        if depth and sign in "\"'":
            start = _rewrite_inner(text, start, quote, signs)
            continue
        if depth == 1 and sign == ":":  # a format: its quotes are no strings
            while start < len(text) and text[start] not in "{}":
                start += 1
            continue
        if sign in "{}" or (depth and sign in "()[]"):
            depth += 1 if sign in "{([" else -1
        start += 1
    return start


def _rewrite_inner(text: str, start: int, outer: str, signs: list[str] | None) -> int:
    """Returns the place behind a string in the braces of another one, and gives it other quotes if it has the same."""
    opening = _COMMENT_OR_STRING.match(text, start)
    assert opening is not None
    quote = opening[2]
    first = start
    while text[first - 1].isalpha():
        first -= 1
    braced = text[first:start].lower() in _WITH_BRACES
    end = _end_of_braced(text, opening.end(), quote, None) if braced else _end_of_plain(text, opening.end(), quote)
    inside = range(opening.end(), end - len(quote))
    if signs is not None and (quote[0] == outer[0] or any(text[k] in "\\" + outer[0] for k in inside)):
        # What the inner string says is lost if it needs more than other quotes.
        other = {'"': "'", "'": '"'}[outer[0]]
        for k in inside:
            signs[k] = "_" if text[k] in "\\\"'{}" and (braced or text[k] in "\\\"'") else text[k]
        for k in (*range(first, start), *range(start, opening.end()), *range(end - len(quote), min(end, len(text)))):
            signs[k] = " " if k < start else other
    return end
