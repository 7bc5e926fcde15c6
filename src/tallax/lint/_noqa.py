# SPDX-License-Identifier: Apache-2.0
"""Comments that silence: `# noqa: TLX002` for a line or the statement it ends, `# tallax: skip-file` for a file."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Sequence

from tallax.lint._finding import Finding
from tallax.lint._source import Source

# A colon means these codes and no others.
_NOQA = re.compile(r"#\s*noqa(?![\w-])(?:[^\S\n]*:([^#\n]*))?", re.IGNORECASE)
_SKIP = re.compile(r"[ \t\f]*#\s*tallax:\s*skip-file\b")
_BETWEEN = (tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)
_HEAD = 10  # lines in which a file may ask to be skipped


def unsilenced(source: Source, findings: Sequence[Finding]) -> list[Finding]:
    """Returns the findings in a file that no comment silences."""
    if not findings or any(_SKIP.match(line) for line in source.text[: 200 * _HEAD].splitlines()[:_HEAD]):
        return []
    words = [_codes(found) for found in _NOQA.finditer(source.text)]  # in comments, and perhaps in strings
    if not any(_means(some, finding) for some in words for finding in findings):
        return list(findings)
    comments = _Comments(source.text)
    return [finding for finding in findings if not comments.silence(finding)]


class _Comments:
    """The silencing comments of a file, and which line a statement ends at."""

    def __init__(self, text: str):
        self._words: dict[int, frozenset[str] | None] = {}
        self._ends: dict[int, int] = {}
        start = 0
        lines = io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n"))
        try:
            for token in tokenize.generate_tokens(lines.readline):
                if token.type == tokenize.COMMENT:
                    self._note(token.start[0], token.string)
                elif token.type == tokenize.NEWLINE:
                    self._ends.update(dict.fromkeys(range(start, token.start[0]), token.start[0]))
                    start = 0
                elif not start and token.type not in _BETWEEN:
                    start = token.start[0]
        except (tokenize.TokenError, SyntaxError):
            pass  # the parser took the file, the tokenizer stumbles: what it has seen so far counts

    def silence(self, finding: Finding) -> bool:
        """Returns whether a comment on a finding's line, or on the last line of the statement there, means the finding."""
        return any(
            line in self._words and _means(self._words[line], finding)
            for line in (finding.line, self._ends.get(finding.line, finding.line))
        )

    def _note(self, line: int, comment: str) -> None:
        found = _NOQA.search(comment)
        if found is not None:
            self._words[line] = _codes(found)


def _codes(found: re.Match[str]) -> frozenset[str] | None:
    """Returns the codes of a comment, None if it names none and so means all."""
    return None if found[1] is None else frozenset(re.findall(r"[\w-]+", found[1]))


def _means(words: frozenset[str] | None, finding: Finding) -> bool:
    """Returns whether a comment without codes, or with these, means a finding: `TLX` means all of them, as in flake8."""
    return words is None or any(
        word == finding.slug or (word[:3].upper() == "TLX" and finding.code.startswith(word.upper())) for word in words
    )
