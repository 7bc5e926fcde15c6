# SPDX-License-Identifier: Apache-2.0
"""What the rules say of the files in `lint_cases`, and of their own examples.

A line that ends in `# error: TLX001` is reported so, once for each code named, and no other line is. What `--fix` makes
of `TLX001.py` is `TLX001.fixed.py`, where there is one.
"""

from __future__ import annotations

import pathlib
import re

import pytest

from tallax.lint import Config, _fixes, lint
from tallax.lint._lint import judged
from tallax.lint._reading import decoded
from tallax.lint._source import Source
from tallax.lint.rules import RULES

CASES = pathlib.Path(__file__).parent / "lint_cases"
PAGES = pathlib.Path(__file__).parents[1] / "docs" / "lint"
FILES = sorted(path for path in CASES.glob("*.py") if not path.stem.endswith(".fixed"))
STYLES = sorted((CASES / "styles").glob("*.py"))


def test_every_rule_has_a_page_and_cases():
    """The codes of the rules, of the pages and of the files of cases are one set; each code and name is used once."""
    codes = {rule.code for rule in RULES}
    assert len(codes) == len({rule.slug for rule in RULES}) == len(RULES)
    assert codes == {path.stem for path in PAGES.glob("TLX*.md")}
    assert codes == {path.stem for path in FILES}


def marked_in(path):
    """Returns the marked lines with their codes."""
    expected = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        marked = re.search(r"# error: (TLX\d+(?:, TLX\d+)*)$", line)
        assert marked or "# error" not in line, f"{path.name}:{number}: a mark that is not one"
        expected += [(number, code) for code in marked[1].split(", ")] if marked else []
    return sorted(expected)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_cases(path):
    """Every marked line is reported, and no other."""
    expected = marked_in(path)
    report = lint([str(path)], Config())
    assert not report.problems
    assert sorted((finding.line, finding.code) for finding in report.findings) == expected
    assert path.stem in {code for _, code in expected}, "no line asks for the file's own rule"


@pytest.mark.parametrize("path", STYLES, ids=lambda path: path.stem)
def test_other_styles(path):
    """The same mistakes are found if they are spelled in other ways: other imports, aliases, mixins, helpers, loops."""
    report = lint([str(path)], Config())
    assert not report.problems
    found = sorted({(finding.line, finding.code) for finding in report.findings})
    assert found == sorted(set(marked_in(path)))
    assert bool(found) == (path.stem != "right")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_fixed_cases(path):
    """What is mended is what is written there, changes nothing more, and where there is nothing there is no edit."""
    report = lint([str(path)], Config())
    changes, after = _fixes.mended(report, Config())
    assert not after.problems
    wanted = path.with_suffix(".fixed.py")
    if wanted.exists():
        assert changes[str(path)].after.decode() == wanted.read_text()
    else:
        assert not changes
    assert not any(finding.fixable for finding in after.findings)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_examples(rule):
    """The rule reports its bad example, once, and no rule reports the good one; one is mended if the rule says so."""
    bad, good = (decoded(name, code.encode()) for name, code in (("bad.py", rule.bad), ("good.py", rule.good)))
    assert isinstance(bad, Source)
    report = judged([bad], Config())
    assert [finding.code for finding in report.findings] == [rule.code]
    assert any(finding.fixable for finding in report.findings) <= bool(rule.fix)
    assert not judged([good], Config()).findings
