# SPDX-License-Identifier: Apache-2.0
"""Comments that silence findings, and those among them that silence none.

`# noqa: TLX002` means a line, or the statement that ends there. `# tallax: noqa: TLX002` on a line of its own means the
file, and so does `# tallax: skip-file` among the first lines, for all rules.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Callable, Iterator, Sequence

from tallax.lint._finding import Edit, Finding
from tallax.lint._source import Source

# A colon means that only these codes are silenced.
_NOQA = re.compile(r"#\s*noqa(?![\w-])(?:[^\S\n]*:([^#\n]*))?", re.IGNORECASE)
_FILE = re.compile(r"^[ \t\f]*#\s*tallax:\s*noqa(?![\w-])(?:[^\S\n]*:([^#\n]*))?", re.IGNORECASE | re.MULTILINE)
_SKIP = re.compile(r"[ \t\f]*#\s*tallax:\s*skip-file\b")
_WORD = re.compile(r"[\w-]+")
_CODE = re.compile(r"\b[A-Za-z]+\d+\b|\w-\w")  # a code of any tool, or the name of a rule
_BETWEEN = (tokenize.NEWLINE, tokenize.NL, tokenize.COMMENT, tokenize.INDENT, tokenize.DEDENT)
_HEAD = 10  # the lines in which `skip-file` is recognized


def unsilenced(source: Source, findings: Sequence[Finding]) -> list[Finding]:
    """Returns the findings in a file that no comment silences."""
    if not findings or is_skipped(source):
        return []
    for_file = [_words(found[1]) for found in _FILE.finditer(source.text)]
    findings = [finding for finding in findings if not any(_means(words, finding) for words in for_file)]
    words = [_words(found[1]) for found in _NOQA.finditer(source.text)]  # in comments, and perhaps in strings
    if not any(_means(some, finding) for some in words for finding in findings):
        return list(findings)
    comments = Comments(source.text)
    return [finding for finding in findings if not comments.silence(finding)]


def is_skipped(source: Source) -> bool:
    """Returns whether a file asks to be skipped."""
    return any(_SKIP.match(line) for line in source.text[: 200 * _HEAD].splitlines()[:_HEAD])


def unused(source: Source, findings: Sequence[Finding], is_known: Callable[[str], bool]) -> Iterator[Finding]:
    """Yields a finding for each comment that names rules of which it silences no finding.

    Args:
        source: A file.
        findings: All its findings of the rules that are applied to it, also the silenced ones.
        is_known: Returns whether a word means rules that are all applied to the file. Other words are left alone.
    """
    if "noqa" not in source.text or is_skipped(source):
        return
    if not any(is_known(word) for found in _NOQA.finditer(source.text) for word in _named(found)):
        return
    comments = Comments(source.text)
    for line, (column, comment) in comments.texts.items():
        found = _NOQA.search(comment)
        if found is None or found[1] is None:
            continue  # without codes it may be meant for other tools
        here = [finding for finding in findings if line in comments.lines_of(finding)]
        idle = [
            word for word in _named(found) if is_known(word) and not any(_means(frozenset([word]), f) for f in here)
        ]
        if idle:
            start = column + len(comment[: found.start()].encode())
            end = column + len(comment[: found.end()].rstrip().encode())
            edit = _without(idle, found, comment, line, column, source)
            named = ", ".join(idle)
            message = f"`# noqa: {named}` silences no finding here; remove it"
            yield Finding(source.path, line, start + 1, "TLX020", "unused-noqa", message, (edit,), line, end + 1)


def _without(idle: list[str], found: re.Match[str], comment: str, line: int, column: int, source: Source) -> Edit:
    """Returns the edit that takes some words out of a comment, or all of it if no code is left."""
    text = found.group(0).rstrip()
    for word in idle:
        text = re.sub(rf"[,\s]*(?<![\w-]){re.escape(word)}(?![\w-])", "", text, count=1)
    start = column + len(comment[: found.start()].encode())
    end = start + len(found.group(0).rstrip().encode())
    if _CODE.search(text.partition(":")[2]):
        return Edit(line, start, line, end, re.sub(r":\s*,?\s*", ": ", text, count=1))
    if comment[found.end() :].strip():  # another comment follows, and the space before this one is for that
        return Edit(line, start, line, column + len(comment[: found.end()].encode()), "")
    before = source.lines()[line - 1].encode()[:start]
    return Edit(line, len(before.rstrip()), line, end, "")


class Comments:
    """The silencing comments of a file, and the line that each statement ends at.

    Attributes:
        texts: By line, the column in UTF-8 bytes and the text of each comment with `noqa`.
    """

    def __init__(self, text: str):
        self.texts: dict[int, tuple[int, str]] = {}
        self._words: dict[int, frozenset[str] | None] = {}
        self._ends: dict[int, int] = {}
        start = 0
        lines = io.StringIO(text.replace("\r\n", "\n").replace("\r", "\n"))
        try:
            for token in tokenize.generate_tokens(lines.readline):
                if token.type == tokenize.COMMENT:
                    self._note(token)
                elif token.type == tokenize.NEWLINE:
                    self._ends.update(dict.fromkeys(range(start, token.start[0]), token.start[0]))
                    start = 0
                elif not start and token.type not in _BETWEEN:
                    start = token.start[0]
        except (tokenize.TokenError, SyntaxError):
            pass  # the parser took the file, the tokenizer stumbles: the comments that were seen count

    def silence(self, finding: Finding) -> bool:
        """Returns whether a comment on a finding's line, or on the last line of its statement, means the finding."""
        return any(line in self._words and _means(self._words[line], finding) for line in self.lines_of(finding))

    def lines_of(self, finding: Finding) -> tuple[int, int]:
        """Returns the lines whose comments may mean a finding."""
        return finding.line, self._ends.get(finding.line, finding.line)

    def _note(self, token: tokenize.TokenInfo) -> None:
        found = _NOQA.search(token.string)
        if found is not None:
            line, column = token.start
            self._words[line] = _words(found[1])
            self.texts[line] = (len(token.line[:column].encode()), token.string)


def _named(found: re.Match[str]) -> list[str]:
    """Returns the words behind the colon of a comment."""
    return _WORD.findall(found[1]) if found[1] is not None else []


def _words(named: str | None) -> frozenset[str] | None:
    """Returns the codes of a comment, None if it names none and so means all."""
    return None if named is None else frozenset(_WORD.findall(named))


def _means(words: frozenset[str] | None, finding: Finding) -> bool:
    """Returns whether a comment with these codes means a finding: `TLX` means all of them, as in flake8."""
    return words is None or any(
        word == finding.slug or (word[:3].upper() == "TLX" and finding.code.startswith(word.upper())) for word in words
    )
