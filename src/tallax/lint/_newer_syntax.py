# SPDX-License-Identifier: Apache-2.0
"""Source in the syntax of a newer Python than the one that runs, rewritten so that this one parses it.

Positions stay as they are: every piece that is left out is replaced by as many spaces. What a type parameter or alias
says is lost, and no rule asks for it. Nested quotes in f-strings (Python 3.12) and template strings (3.14) cannot be
rewritten in this way.
"""

from __future__ import annotations

import re

_WITH_PARAMETERS = re.compile(r"^([ \t]*(?:async[ \t]+)?(?:def|class|type)[ \t]+\w+)[ \t]*\[", re.MULTILINE)
_ALIAS = re.compile(r"^([ \t]*)type[ \t]+([^\W\d]\w*)[ \t]*=(?!=)", re.MULTILINE)
_EXCEPT = re.compile(r"^([ \t]*except\*?) +([\w.]+(?:[ \t]*,[ \t]*[\w.]+)+)[ \t]*:", re.MULTILINE)


# The parser's complaint about nested quotes in an f-string, and a template string.
_NEWER_STRING = re.compile(r"""^f-string|\b[tT][rR]?["']|\b[rR][tT]["']""", re.MULTILINE)


def may_be_newer(line: str, complaint: str) -> bool:
    """Returns whether a line that does not parse may be in the syntax of a newer Python that is not rewritten here."""
    return _NEWER_STRING.search(f"{complaint}\n{line}") is not None


def in_older_syntax(text: str) -> str:
    """Returns source without type parameters, type aliases and `except A, B:`, each line as long as before."""
    text = _without_parameters(text)
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
