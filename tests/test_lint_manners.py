# SPDX-License-Identifier: Apache-2.0
"""`tallax lint` can be added to a project with findings: baselines, comments, nested configuration, links."""

from __future__ import annotations

import ast
import io
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import types

import pytest

import tallax
from tallax.lint import _cli, _config, lint
from tallax.lint._gitignore import GitIgnore
from tallax.lint._lint import judged
from tallax.lint._newer_syntax import in_older_syntax, python_needed
from tallax.lint._reading import decoded
from tests.fake_rules import install, notebook, ran

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "linting.md"
COUNTER = """\
import jax.numpy as jnp
from flax import nnx


class Model(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.zeros((), jnp.int32))

    def __call__(self, x):
        self.count += 1
        return x
"""


@pytest.fixture
def words(monkeypatch, tmp_path):
    """Rules that look for words."""
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """The real rules, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text="PARAM\n"):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, newline="")
    return path


def places(capsys, *arguments):
    """Returns the places of the findings, as `path:line`."""
    return [":".join(line.split(":")[:2]) for line in ran(capsys, *arguments)[1]]


# Baselines


def test_a_baseline_hides_the_findings_it_lists(words, capsys):
    """They stay hidden if lines are added above; one more of the same text is new, and so is another text."""
    write("src/a.py", "PARAM\nPARAM\n")
    assert _cli.main([".", "--write-baseline", "base.json"]) == 0
    assert capsys.readouterr().err == "Wrote 2 findings to base.json.\n"
    assert json.loads(pathlib.Path("base.json").read_text()) == {
        "version": 1,
        "findings": [{"path": "src/a.py", "code": "TLX001", "text": "PARAM", "count": 2}],
    }
    assert places(capsys, ".", "--baseline", "base.json") == []
    write("src/a.py", "# more\nPARAM\n  \nPARAM\nPARAM\nx = PARAM\n")
    assert places(capsys, ".", "--baseline", "base.json") == ["src/a.py:5", "src/a.py:6"]
    write("pyproject.toml", "[tool.tallax.lint]\nbaseline = 'base.json'\n")
    os.chdir("src")
    assert places(capsys, ".") == ["a.py:5", "a.py:6"]  # paths start from the folder of the baseline


def test_a_baseline_is_not_fixed(words, capsys):
    """`--fix` leaves the listed findings as they are."""
    write("a.py", "x += 1\n")
    _cli.main([".", "--write-baseline", "base.json"])
    write("a.py", "x += 1\ny += 1\n")
    assert _cli.main([".", "--baseline", "base.json", "--fix"]) == 0
    assert pathlib.Path("a.py").read_text() == "x += 1\ny[...] += 1\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, "can't be read: No such file"),
        ("[]", "not a baseline of tallax lint"),
        ("{", "not a baseline of tallax lint"),
        ('{"version": 2, "findings": []}', "the version is 2, and this tallax reads 1"),
        ('{"version": 1, "findings": [{}]}', "not a baseline of tallax lint"),
    ],
)
def test_files_that_are_no_baselines(words, capsys, text, expected):
    """Exit with 2 and the reason."""
    write("a.py")
    if text is not None:
        write("base.json", text)
    status, _, errors = ran(capsys, ".", "--baseline", "base.json")
    assert status == 2
    assert expected in errors[0]


# Comments


def test_comments_are_added(words, capsys):
    """One for each line, also behind strings and backslashes; codes of other tools stay; then nothing is reported."""
    write(
        "a.py",
        "PARAM, ODD\nx += 1  # noqa: E501\n'''PARAM\n'''\ny = PARAM + \\\n    1\nz = PARAM  # é\n",
    )
    write("b.ipynb", notebook(("code", "1"), ("code", "PARAM\n2")))
    assert _cli.main([".", "--add-noqa"]) == 0
    assert capsys.readouterr().err == "6 comments in 2 files added.\n"
    assert pathlib.Path("a.py").read_text() == (
        "PARAM, ODD  # noqa: TLX001, TLX012\nx += 1  # noqa: E501, TLX002\n'''PARAM\n'''  # noqa: TLX001\n"
        "y = PARAM + \\\n    1  # noqa: TLX001\nz = PARAM  # é  # noqa: TLX001\n"
    )
    assert "PARAM  # noqa: TLX001" in pathlib.Path("b.ipynb").read_text()
    assert ran(capsys, ".") == (0, [], [])


def test_comments_for_a_whole_file(words, capsys):
    """On a line of its own, with codes or names; without a colon it means all rules."""
    write("a.py", "import x\n# tallax: noqa: TLX001, odd-one\nPARAM\nODD\nx += 1\n")
    assert places(capsys, "a.py") == ["a.py:5"]
    write("a.py", "PARAM\nODD\n# tallax: noqa\n")
    assert places(capsys, "a.py") == []
    write("a.py", "PARAM  # tallax: noqa\n")
    assert places(capsys, "a.py") == ["a.py:1"]


def test_unused_comments_of_other_rules(folder):
    """A comment for a rule that is not applied is not unused; in a file without nnx all are."""
    source = decoded("a.py", b"x = 1  # noqa: TLX002\ny = 2  # noqa: F401, TLX\n")
    unused = [finding.line for finding in judged([source], _config.Config()).findings]
    assert unused == [1, 2]
    assert judged([source], _config.Config(ignore=("TLX002",))).findings == []
    assert judged([source], _config.Config(select=("TLX020",))).findings == []


# Configuration


def test_each_file_obeys_the_nearest_project(words, capsys):
    """A `pyproject.toml` without the linter's table is passed over."""
    write("pyproject.toml", "[tool.tallax.lint]\nignore = ['TLX001']\n")
    write("inner/pyproject.toml", "[tool.tallax.lint]\nignore = ['odd-one']\nexclude = ['made/*']\n")
    write("other/pyproject.toml", "[project]\nname = 'other'\n")
    for name in ("a", "inner/b", "inner/made/c", "other/d"):
        write(f"{name}.py", "PARAM\nODD\n")
    assert places(capsys, ".") == ["a.py:2", "inner/b.py:1", "other/d.py:2"]
    assert places(capsys, "inner/b.py", "a.py") == ["a.py:2", "inner/b.py:1"]
    write("inner/pyproject.toml", "[tool.tallax.lint]\nignored = []\n")
    status, _, errors = ran(capsys, ".")
    assert status == 2
    assert "inner" in errors[0]


def test_extend_select(words, capsys):
    """Adds rules to those that are selected, in a project and on the command line."""
    write("a.py", "PARAM\nODD\nx += 1\n")
    write("pyproject.toml", "[tool.tallax.lint]\nselect = ['TLX001']\nextend-select = ['TLX002']\n")
    assert places(capsys, ".") == ["a.py:1", "a.py:3"]
    assert places(capsys, ".", "--extend-select", "odd-one") == ["a.py:1", "a.py:2"]
    assert places(capsys, ".", "--select", "TLX012") == ["a.py:2"]


def test_rules_of_later_versions_of_flax(folder, capsys):
    """`flax-version` turns off the rules about mistakes that only later versions know."""
    write("a.py", "from flax import nnx\n\n\nclass A(nnx.Module):\n    def __init__(self):\n        self.a = [A()]\n")
    assert places(capsys, ".") == ["a.py:6"]
    assert places(capsys, ".", "--flax-version", "0.12.1") == ["a.py:6"]
    assert places(capsys, ".", "--flax-version", "0.11") == []
    write("pyproject.toml", "[tool.tallax.lint]\nflax-version = '0.11.2'\n")
    assert places(capsys, ".") == []
    assert ran(capsys, ".", "--flax-version", "new")[2][0] == "flax-version: takes a version."


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("baseline = 3", ["baseline: is a path.", 'baseline = "tallax-baseline.json"']),
        ("flax-version = 0.12", ["flax-version: is a version", 'flax-version = "0.12"']),
        ("respect-gitignore = 'no'", ["respect-gitignore: is true or false.", "respect-gitignore = true"]),
    ],
)
def test_wrong_settings(words, capsys, toml, expected):
    """Exit with 2 and say what to write."""
    write("pyproject.toml", f"[tool.tallax.lint]\n{toml}\n")
    status, _, errors = ran(capsys, ".")
    assert status == 2
    assert all(part in "\n".join(errors) for part in expected)


def test_standard_input_with_a_name(words, capsys, monkeypatch):
    """Its configuration, its kind and its path are those of the named file."""
    write("pyproject.toml", "[tool.tallax.lint]\nper-file-ignores = { 'tests/*' = ['TLX001'] }\n")

    def given(data, *arguments):
        monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(data)))
        return places(capsys, "-", *arguments)

    assert given(b"PARAM\n", "--stdin-filename", "src/a.py") == ["src/a.py:1"]
    assert given(b"PARAM\n", "--stdin-filename", "tests/a.py") == []
    assert given(notebook(("code", "PARAM")).encode(), "--stdin-filename", "b.ipynb") == ["b.ipynb:cell 1"]
    with pytest.raises(SystemExit, match="2"):
        _cli.main(["a.py", "--stdin-filename", "b.py"])


# Files that git ignores


@pytest.mark.parametrize(
    ("lines", "ignored", "kept"),
    [
        ("*.gen.py", ["a.gen.py", "b/a.gen.py"], ["a.py"]),
        ("/a.py", ["a.py"], ["b/a.py"]),
        ("b/", ["b/"], ["b", "a.py"]),
        ("b/c.py", ["b/c.py"], ["c.py", "d/b/c.py"]),
        ("**/c.py", ["c.py", "d/b/c.py"], ["d.py"]),
        ("d/**/c.py", ["d/c.py", "d/e/f/c.py"], ["c.py"]),
        ("d/**", ["d/c.py", "d/e/"], ["c.py"]),
        ("*.py\n!a.py", ["b.py"], ["a.py"]),
        ("# a.py\n\n\\#b.py\n\\!c.py", ["#b.py", "!c.py"], ["a.py"]),
        ("a?.py\n[bc].py\n[!x]z.py", ["ab.py", "b.py", "yz.py"], ["a.py", "d.py", "xz.py"]),
        ("a*/b.py", ["aa/b.py"], ["a/c/b.py"]),
        ("a.py  ", ["a.py"], ["b.py"]),
    ],
)
def test_gitignore(folder, lines, ignored, kept):
    """As git reads the patterns; a slash at the end of a path below means a folder."""
    os.mkdir(".git")
    write(".gitignore", lines + "\n")
    ignore = GitIgnore()
    for path in ignored:
        assert ignore.ignores(str(folder / path.rstrip("/")), path.endswith("/")), path
    for path in kept:
        assert not ignore.ignores(str(folder / path), path.endswith("/")), path


def test_gitignore_agrees_with_git(folder):
    """Git itself gives the same answers, for patterns in nested files."""
    run = subprocess.run(["git", "init", "-q", "."], capture_output=True, check=False)
    if run.returncode:
        pytest.skip("git is not installed")
    write(".gitignore", "build/\n*.log.py\n!keep.log.py\n/top.py\ndocs/*.py\n**/cache/**\n")
    write("pkg/.gitignore", "local.py\n!*.log.py\nsub/*\n!sub/kept.py\n")
    paths = [
        f"{head}{name}"
        for head in ("", "pkg/", "pkg/sub/", "docs/", "docs/x/", "a/cache/", "build/")
        for name in ("top.py", "a.log.py", "keep.log.py", "local.py", "kept.py", "other.py")
    ]
    for path in paths:
        write(path)
    done = subprocess.run(
        ["git", "check-ignore", "--stdin"], input="\n".join(paths), capture_output=True, text=True, check=False
    )
    found = {path.removeprefix("./") for path in lint(["."], _config.Config(root=".")).sources}
    assert found == {path for path in set(paths) - set(done.stdout.splitlines()) if not path.startswith("build/")}
    assert len(found) < len(paths)


def test_ignored_files_can_be_read(words, capsys):
    """If they are named, or if the option or the project says so; without a working tree nothing is ignored."""
    os.mkdir(".git")
    write(".gitignore", "made/\n")
    write("a.py")
    write("made/b.py")
    both = ["a.py:1", "made/b.py:1"]
    assert places(capsys, ".") == ["a.py:1"]
    assert places(capsys, "made/b.py") == ["made/b.py:1"]
    assert places(capsys, "made") == ["made/b.py:1"]
    write("inner/.gitignore", "*\n")  # as a virtual environment has it
    write("inner/sub/c.py")
    assert places(capsys, ".") == ["a.py:1"]
    assert places(capsys, "inner/sub") == ["inner/sub/c.py:1"]
    os.remove("inner/sub/c.py")
    assert places(capsys, ".", "--no-gitignore") == both
    write("pyproject.toml", "[tool.tallax.lint]\nrespect-gitignore = false\n")
    assert places(capsys, ".") == both
    os.remove("pyproject.toml")
    os.rmdir(".git")
    assert places(capsys, ".") == both


# Syntax, links and Ctrl-C


def test_newer_syntax(folder, capsys):
    """Type parameters, aliases and bare exceptions are read by any Python, and findings stand where they should."""
    text = (
        "import jax.numpy as jnp\nfrom flax import nnx\n\ntype Shape[T = int] = tuple[T, ...]\n\n\n"
        "class Model[T: (int, str)](nnx.Module):\n    def __init__[*Ts,\n                 **P](self):\n"
        "        self.count = nnx.Variable(jnp.zeros((), jnp.int32))\n\n"
        "    def __call__[S](self, x: S) -> S:\n        type Own[U] = list[U]\n"
        "        try:\n            self.count += 1\n        except ValueError, TypeError:\n            pass\n"
        "        return x\n"
    )
    write("a.py", text)
    assert ran(capsys, "a.py")[1][0].startswith("a.py:15:13: TLX002")
    _cli.main(["--fix", "a.py"])
    assert pathlib.Path("a.py").read_text() == text.replace("self.count +=", "self.count[...] +=")
    older = in_older_syntax(text)
    assert [len(line) for line in older.splitlines()] == [len(line) for line in text.splitlines()]
    assert in_older_syntax(COUNTER) == COUNTER


# A string in newer syntax, and below it what an older Python is given.
NEWER_STRINGS = r"""
f'{d['a']}'
f'{d["a"]}'
f"{'\n'.join(a)} {b!r:>{w}} {{ {c["k"]}"
f"{'_n'.join(a)} {b!r:>{w}} {{ {c['k']}"
f"{f"{x["a"]}"}" + "it's"
f"{ '_x[_a_]_'}" + "it's"
T"{a.value}" tr'{b}\d'
F"{a.value}" fr'{b}\d'
f"{x:'>10} {d["q"]}"
f"{x:'>10} {d['q']}"
f"{"a" if '"' else "\\"}"
f"{'a' if '_' else '__'}"
f"{x!r}{"}"}"
f"{x!r}{'}'}"
""".strip().splitlines()


@pytest.mark.parametrize(("newer", "older"), list(zip(NEWER_STRINGS[::2], NEWER_STRINGS[1::2], strict=True)))
def test_strings_of_newer_pythons(folder, capsys, newer, older):
    """Nested quotes and backslashes in braces, and template strings, are read; findings stand where they should."""
    assert in_older_syntax(newer) == older
    ast.parse(older)
    model = COUNTER.replace("        self.count += 1\n", f"        print({newer}); self.count += 1\n")
    assert model != COUNTER
    write("a.py", model)
    (place,) = [line.split(" ")[0] for line in ran(capsys, "a.py")[1]]
    line = next(k for k, text in enumerate(model.splitlines(), 1) if "+=" in text)
    assert place == f"a.py:{line}:{model.splitlines()[line - 1].encode().index(b'self.count') + 1}:"


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="comments in f-strings are read by Python 3.12")
def test_syntax_that_cannot_be_read(folder, capsys):
    """The message names the line and the Python that it needs; JSON counts the file."""
    write("a.py", "from flax import nnx\ntype X = int\nprint(f'{d[  # why\n  0]}')\n")
    assert _cli.main(["a.py"]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith(f"a.py:3: skipped: does not parse on Python 3.{sys.version_info.minor}: ")
    assert "; if the line is in the syntax of Python 3.12, run the linter with Python 3.12 or newer\n" in shown
    assert _cli.main(["a.py", "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["files"], report["skipped"], report["problems"][0]["line"]) == (1, 1, 3)
    assert "run the linter with Python 3.12" in report["problems"][0]["message"]


def test_a_mistake_in_the_syntax_has_no_hint(folder, capsys):
    """A file that no Python parses is not said to need a newer one; it is skipped, and JSON counts it."""
    write("a.py", "from flax import nnx\nx = (1,\n")
    assert _cli.main(["a.py", "--format", "json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["files"], report["skipped"], report["problems"][0]["line"]) == (1, 1, 2)
    assert _cli.main(["a.py"]) == 1
    assert "run the linter" not in capsys.readouterr().err


def test_the_python_that_a_line_needs():
    """The hint comes from the line and the parser's complaint."""
    assert python_needed("x = t'{a}' + (", "'(' was never closed") == "3.14"
    assert python_needed("x = f'{a", "unterminated string literal") == "3.12"
    assert python_needed("x = f'{a b}'", "f-string: invalid syntax") == "3.12"
    assert python_needed("x = (", "'(' was never closed") == ""


def test_links_out_of_the_folder_are_not_written(folder, capsys):
    """Neither links to files nor files in linked folders; a link within the folder stays a link to a fixed file."""
    write("outside/a.py", COUNTER)
    write("outside/lib/b.py", COUNTER)
    write("project/own.py", COUNTER)
    os.chdir("project")
    os.symlink("../outside/a.py", "a.py")
    os.symlink("../outside/lib", "lib")
    os.mkdir("more")
    os.symlink("../own.py", "more/alias.py")
    status, output, errors = ran(capsys, "--fix", ".")
    assert (status, len(output)) == (1, 0)
    assert [error.partition(": ")[0] for error in errors if "link" in error] == ["a.py", "lib/b.py"]
    assert (folder / "outside/a.py").read_text() == (folder / "outside/lib/b.py").read_text() == COUNTER
    assert "self.count[...] += 1" in pathlib.Path("own.py").read_text()
    assert os.path.islink("more/alias.py")
    ran(capsys, "--add-noqa", ".")
    assert (folder / "outside/a.py").read_text() == COUNTER
    ran(capsys, "--fix", "../outside")
    assert "self.count[...] += 1" in (folder / "outside/lib/b.py").read_text()


def test_the_recipe_for_vs_code(words, capsys):
    """The pattern in the docs matches the lines that the linter prints, in files and in notebooks."""
    blocks = re.findall(r"^```json\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)
    (task,) = json.loads(blocks[0])["tasks"]
    pattern = task["problemMatcher"]["pattern"]
    write("a b/c.py", "x = PARAM\n")
    write("d.ipynb", notebook(("code", "1"), ("code", "2\nPARAM")))
    found = [re.match(pattern["regexp"], line) for line in ran(capsys, ".")[1]]
    keys = ("file", "line", "column", "code", "message")
    assert [tuple(match[pattern[key]] for key in keys) for match in found] == [
        ("a b/c.py", "1", "5", "TLX001", "[param-state] 100% PARAM, here: or not"),
        ("d.ipynb", "2", "1", "TLX001", "[param-state] 100% PARAM, here: or not"),
    ]


@pytest.mark.skipif(sys.platform == "win32", reason="has other signals")
@pytest.mark.parametrize("command", [["-m", "tallax.lint"], ["-c", "import tallax.cli; tallax.cli.main()", "lint"]])
def test_ctrl_c_during_the_imports(folder, command):
    """Ends quietly, however early it comes once tallax has been asked for."""
    # An import hook that is interrupted stands in for a Ctrl-C at exactly that moment.
    write(
        "sitecustomize.py",
        "import os, signal, sys\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == os.environ['INTERRUPTED']:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupt())\n",
    )
    paths = os.pathsep.join([str(folder), str(pathlib.Path(tallax.__file__).parents[1])])
    for module in ("tallax.lint._cli", "tallax.lint._config", "tallax.lint.rules.weak", "tallax.lint._output"):
        environment = os.environ | {"PYTHONPATH": paths, "INTERRUPTED": module}
        done = subprocess.run(
            [sys.executable, *command, "."], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (130, ""), module


def test_the_linter_stays_fast_without_git(words):
    """Ten thousand names in a folder without patterns take no second."""
    os.mkdir(".git")
    ignore = GitIgnore()
    start = time.perf_counter()
    for number in range(10_000):
        ignore.ignores(os.path.abspath(f"{number}.py"), False)
    assert time.perf_counter() - start < 1
