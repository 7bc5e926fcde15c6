# SPDX-License-Identifier: Apache-2.0
"""The pages agree with the code; sybil runs their examples (see conftest.py)."""

import pathlib
import re
from importlib import resources

import tallax
import tallax.cli
from tallax.checking import RESUME_RULES, RULES
from tallax.checking._check_results import _TIER
from tallax.lint import lint
from tests.corpus.case import RULES as CORPUS_RULES

ROOT = pathlib.Path(__file__).parents[1]
DOCS = ROOT / "docs"


def test_every_rule_is_on_the_page():
    """The table of rules is the code's, in its order, and every rule that the code can name is one of them."""
    rows = re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", (DOCS / "statecheck.md").read_text(), flags=re.MULTILINE)
    said = {rule: re.sub(r"\[(.+)\]\(.+\)", r"\1", text) for rule, text in rows}
    assert said == RULES
    source = "".join(path.read_text() for path in pathlib.Path(tallax.checking.__file__).parent.glob("*.py"))
    named = set(re.findall(r'(?:Finding|finding_of)\(\s*"([a-z-]+)"|rule, message = \(?\s*"([a-z-]+)"', source))
    named_rules = {a or b for a, b in named} - RESUME_RULES.keys()
    assert named_rules | set(_TIER) | CORPUS_RULES <= set(RULES)


def test_the_worked_solution_is_the_one_that_is_graded():
    """The solution on the page is the file that the tests grade."""
    solution = resources.files("tallax.learning.exercises.step_counter").joinpath("solution.py").read_text()
    code = solution.split('"""\n\n', 1)[1].partition("\n\n\nif __name__")[0]
    assert f"```python\n{code}\n```" in (DOCS / "exercise.md").read_text()


def test_the_linter_finds_the_pitfalls(tmp_path):
    """In the examples of that page the linter finds what the table says, once each."""
    page = (DOCS / "pitfalls.md").read_text()
    code = tmp_path / "pitfalls.py"
    code.write_text("\n\n".join(re.findall(r"```python\n(.*?)```", page, flags=re.DOTALL)))
    found = [problem.code for problem in lint([str(code)]).findings]
    assert found == [f"TLX{n:03}" for n in (1, 2, 3, 4, 5, 7, 8, 10)]
    slugs = dict(re.findall(r"\| \[(TLX\d+)\]\S+ \| `([a-z-]+)`", page))
    assert set(slugs.values()) <= set(RULES)


def test_links_lead_somewhere():
    """Every relative link of README and of a page leads to a file."""
    for page in (ROOT / "README.md", *DOCS.rglob("*.md")):
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_code_is_narrow():
    """A line of an example has no more than 100 characters: the site shows so many without a bar to scroll."""
    for page in (ROOT / "README.md", *DOCS.rglob("*.md")):
        for code in re.findall(r"^```(?:python|py|bash|sh)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE):
            assert not [line for line in code.splitlines() if len(line) > 100], page.name


def test_every_command_is_on_its_page():
    """The page of the command line has each command that there is, in alphabetical order."""
    rows = re.findall(r"^\| `tallax (\w+)[ `]", (DOCS / "command-line.md").read_text(), flags=re.MULTILINE)
    commands = re.findall(r"@app\.command\(.*\)\n    def (\w+)", pathlib.Path(tallax.cli.__file__).read_text())
    assert rows == sorted(commands)
    assert len(commands) > 5
