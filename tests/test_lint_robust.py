# SPDX-License-Identifier: Apache-2.0
"""`tallax lint` does not crash: on odd files, on every package that is installed, on programs that grammars make up."""

from __future__ import annotations

import ast
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import sysconfig

import hypothesis
import pytest
from hypothesis import strategies as st

from tallax.lint import Config, _cli, _engine, _fixes, lint
from tallax.lint._lint import judged
from tallax.lint._reading import decoded, read
from tallax.lint._source import Problem, Source
from tests import fake_rules

NNX = b"from flax import nnx\n"
DEEP = "nested too deeply"
WRONG = "skipped: does not parse"
CODEC = "skipped: its encoding can't be read"


def nested(statement, depth):
    return (
        NNX + "".join("  " * k + statement.format(k) + "\n" for k in range(depth)).encode() + b"  " * depth + b"pass\n"
    )


MODEL = b"class M(nnx.Module):\n  def __init__(self): self.c = nnx.Param(jnp.ones(3))\n"
ODD = {
    "empty": (b"", None),
    "blank": (b"\n\x0c\n\t\n", None),
    "mark": (b"\xef\xbb\xbf" + NNX, None),
    "mark and another cookie": (b"\xef\xbb\xbf# coding: latin-1\n" + NNX, CODEC),
    "latin-1": (b"# coding: latin-1\ns = '\xe9'\n" + NNX, None),
    "cookie in the second line": (b"#!/usr/bin/python\n# vim: set fileencoding=cp1252 :\ns = '\x80'\n" + NNX, None),
    "no such codec": (b"# coding: klingon\n" + NNX, CODEC),
    "a codec of bytes": (b"# coding: hex\n" + NNX, CODEC),
    "surrogates": (b"# coding: unicode_escape\nx = '\\ud800'\n" + NNX, WRONG),
    "not UTF-8": (b"s = '\xe9'\n" + NNX, CODEC),
    "UTF-16": (NNX.decode().encode("utf-16"), CODEC),
    "NUL": (NNX + b"x = 1\0\n", WRONG),
    "binary": (bytes(range(256)), CODEC),
    "Python 2": (NNX + b"print 'hello'\n", WRONG),
    "cut off": (NNX + b"class A(nnx.Module", WRONG),
    "invalid escapes": (NNX + b"s = '\\d'; 1 is 1; 1or 1\n", None),
    "carriage returns": (NNX.replace(b"\n", b"\r") + b"class A(nnx.Module):\r  x = 1\r", None),
    "no newline": (NNX + b"class A(nnx.Module): pass", None),
    "form feeds and tabs": (b"\x0c" + NNX + b"class A(nnx.Module):\n\x0c\tdef f(self):\n\x0c\t\tself.x = 1\n", None),
    "separators in strings": (NNX + "s = '\u2028\x1c\x85'\nx = nnx.Param(1)\n".encode(), None),
    "500 parentheses": (NNX + b"x = " + b"(" * 500 + b"1" + b")" * 500, WRONG),
    "150 parentheses": (NNX + b"x = " + b"(" * 150 + b"1" + b")" * 150, None),
    "5,000 minuses": (NNX + b"x = " + b"-" * 5000 + b"1", DEEP),
    "5,000 terms": (NNX + b"x = 1" + b" + 1" * 5000, DEEP),
    "700 terms": (NNX + b"x = nnx.Param(1)" + b" + 1" * 700, None),
    "700 calls": (NNX + b"x = nnx" + b".f()" * 300, None),
    "a thousand elifs": (NNX + b"if a: b\n" + b"elif nnx: c\n" * 1000, DEEP),
    "99 functions": (nested("def f{}(x=nnx.Param(1)):", 99), None),
    "99 classes": (nested("class C{}(nnx.Module):", 99), None),
    "a hundred ifs": (nested("if f{}:", 100), WRONG),
    "a long number": (NNX + b"x = " + b"9" * 10_000, WRONG),
    "a long line": (NNX + b"x = [" + b"nnx.Param(1), " * 20_000 + b"]", None),
    "odd names": (NNX + "\uff4enx = nnx.Param\nclass \xdcn\xef(nnx.Module): \uff58 = 1\n".encode(), None),
    # Of these each line once looked at all those before it.
    "5,000 bindings": (NNX + MODEL + b"def f():\n" + b"  m = M()\n  m.c.value\n" * 5_000, None),
    "5,000 branches": (NNX + MODEL + b"def f(a):\n" + b"  if a:\n    m = M()\n  m.c.value\n" * 5_000, None),
    "5,000 appends": (NNX + b"def f():\n  xs = []\n" + b"  xs.append(nnx.Param(a))\n  xs[0].value\n" * 5_000, None),
    "5,000 calls": (
        NNX + MODEL + b"def f():\n  def g(m):\n" + b"    m.c.value\n" * 5_000 + b"  g(M())\n" * 5_000,
        None,
    ),
    "50,000 lines": (NNX + b"class A(nnx.Module):\n  def f(self):\n    self.x = 1\n    self.x += 1\n\n" * 10_000, None),
}


def failures(problems):
    """Returns the problems that are faults of the linter."""
    faults = ("tallax lint failed", "not mended", "for the rules")
    return [problem for problem in problems if any(word in problem.message for word in faults)]


@pytest.mark.parametrize("name", ODD)
def test_odd_files(name, tmp_path):
    """They are judged, or skipped with a word in one line; what depends on the parser's version may be either."""
    data, word = ODD[name]
    path = tmp_path / "odd.py"
    path.write_bytes(data)
    source = read(str(path))
    problems = [source] if isinstance(source, Problem) else source.problems
    if isinstance(source, Source):
        assert (source.parse() is None) == bool(problems)
    report = lint([str(path)], Config())
    if word == DEEP:  # the parser, or the rules, or neither
        problems = report.problems
        assert len(problems) <= 1
    else:
        assert len(problems) == (word is not None)
        assert report.problems == problems
    for problem in problems:
        assert "\n" not in str(problem)
        assert (word or "") in str(problem)
    _, after = _fixes.mended(report, Config())
    assert [problem for problem in failures(after.problems) if word != DEEP] == []


@pytest.mark.parametrize(("crash", "said"), [("CRASH", "tallax lint failed"), ("DEEP", "for the rules")])
def test_a_fault_of_the_rules_is_seen(crash, said, monkeypatch):
    """`failures`, on which the tests of this file rest, finds a rule that raises."""
    monkeypatch.setattr(_engine, "findings_in", fake_rules.findings_in)
    report = judged([decoded("made.py", f"x = {crash}\n".encode())], Config())
    assert [said in str(problem) for problem in failures(report.problems)] == [True]


def test_classes_that_derive_from_themselves(tmp_path):
    """Nor do files that import each other keep the linter busy."""
    (tmp_path / "a.py").write_text("from flax import nnx\nfrom b import B\nclass A(B, A, nnx.Module): x = A.x\n")
    (tmp_path / "b.py").write_text("from a import A\nfrom b import B\nclass B(A): x = B.x = A\n")
    assert not lint([str(tmp_path)], Config()).problems


SITE = pathlib.Path(sysconfig.get_paths()["purelib"])
CASES = pathlib.Path(__file__).parent / "lint_cases"
FIXTURES = sorted(path for path in CASES.rglob("*.py") if not path.stem.endswith(".fixed"))


@pytest.mark.thorough
@pytest.mark.parametrize("start", "abcdefghijklmnopqrstuvwxyz_")
def test_every_installed_package(start):
    """Nothing fails, and every edit applies, parses and settles."""
    paths = [str(path) for path in sorted(SITE.iterdir()) if path.name[0].lower() == start]
    report = lint([path for path in paths if pathlib.Path(path).is_dir() or path.endswith(".py")], Config())
    assert not failures(report.problems)
    _, after = _fixes.mended(report, Config())
    assert not failures(after.problems)
    assert not any(finding.fixable for finding in after.findings)


def copies_of_packages(folder):
    """Copies the Python files of the installed packages that mention nnx, and returns the packages' names."""
    mentioning = re.compile(r"\bnnx\b")
    names = set()
    for path in sorted(SITE.glob("*/**/*.py")):
        if mentioning.search(path.read_text(encoding="utf-8", errors="ignore")):
            names.add(path.relative_to(SITE).parts[0])
    for name in names:
        shutil.copytree(SITE / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return names


def importing(modules, folder):
    """Returns how the import of each module ends, in a process that finds packages in a folder first."""
    code = (
        "import importlib, json, sys\n"
        "ends = {}\n"
        "for name in json.loads(sys.argv[1]):\n"
        "    try:\n"
        "        module = importlib.import_module(name)\n"
        "        ends[name] = module.__file__ or [*module.__path__][0]\n"
        "    except Exception as error:\n"
        "        ends[name] = type(error).__name__\n"
        "print(json.dumps(ends))\n"
    )
    environment = os.environ | {"PYTHONPATH": str(folder), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-W", "ignore", "-c", code, json.dumps(modules)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return {name: end.removeprefix(str(folder)) for name, end in json.loads(done.stdout.splitlines()[-1]).items()}


@pytest.mark.thorough
def test_fixed_packages_import_as_before(tmp_path):
    """`--fix` over copies of the installed packages that mention nnx: the files parse, a second run changes no byte,
    and each changed module, and each package, imports as before.
    """
    names = copies_of_packages(tmp_path)
    assert {"flax", "metrax"} <= names
    shutil.copytree(CASES, tmp_path / "cases_to_fix")  # of which many files change, whatever the installed versions
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.py")}
    _cli.main(["--fix", "--no-config", str(tmp_path)])
    after = {path: path.read_bytes() for path in before}
    changed = [path for path in before if after[path] != before[path]]
    assert any("cases_to_fix" in path.parts for path in changed)
    for path in changed:
        ast.parse(after[path])
    _cli.main(["--fix", "--no-config", str(tmp_path)])
    assert after == {path: path.read_bytes() for path in before}
    modules = sorted(names | {".".join(path.relative_to(tmp_path).with_suffix("").parts) for path in changed})
    modules = [name.removesuffix(".__init__") for name in modules if ".fixed" not in name]
    fixed = importing(modules, tmp_path)
    assert all(end.startswith("/") for name, end in fixed.items() if name in names)
    for path in changed:
        path.write_bytes(before[path])
    assert fixed == importing(modules, tmp_path)


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_fixed_cases_parse_and_settle(path, tmp_path):
    """`--fix` over each file of the cases and styles leaves a file that parses, and changes nothing a second time."""
    copy = tmp_path / path.name
    shutil.copyfile(path, copy)
    _cli.main(["--fix", "--no-config", str(copy)])
    once = copy.read_bytes()
    ast.parse(once)
    _cli.main(["--fix", "--no-config", str(copy)])
    assert copy.read_bytes() == once


@pytest.mark.thorough
def test_python_holds_no_magics():
    """A notebook's cell of nothing but Python is left as it is: here, whole files of the standard library."""
    paths = list(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))
    assert len(paths) > 100
    for path in paths:
        code = path.read_text(encoding="utf-8", errors="replace")
        data = json.dumps({"cells": [{"cell_type": "code", "source": code}]}).encode()
        source = decoded("made.ipynb", data)
        assert isinstance(source, Source)
        assert source.text == code, path


def survives(code):
    """The linter judges a program, or says why not, and its edits settle."""
    source = decoded("made.py", code)
    assert isinstance(source, Source)
    report = judged([source], Config())
    _, after = _fixes.mended(report, Config())
    assert not failures(after.problems)


MANY = hypothesis.settings(max_examples=300, suppress_health_check=list(hypothesis.HealthCheck))


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")  # what hypothesmith compiles
@pytest.mark.parametrize("strategy", ["from_grammar", "from_node"])
def test_programs_of_the_grammar(strategy):
    """Whatever the grammar allows."""
    import hypothesmith

    @MANY
    @hypothesis.given(getattr(hypothesmith, strategy)())
    def check(code):
        survives(NNX + code.encode(errors="ignore"))

    check()


LINES = [
    line
    for path in sorted((pathlib.Path(__file__).parent / "lint_cases").glob("*.py"))
    for line in path.read_text().splitlines(keepends=True)
]


@pytest.mark.thorough
@MANY
@hypothesis.given(st.lists(st.tuples(st.sampled_from(LINES), st.integers(0, 3)), max_size=30))
def test_programs_of_shuffled_cases(lines):
    """Lines of the cases in any order, at any depth: most do not parse, those that do are odd."""
    survives(NNX + "".join("    " * depth + line.lstrip() for line, depth in lines).encode())


@pytest.mark.thorough
@MANY
@hypothesis.given(st.integers(0, len(LINES)), st.integers(1, 40), st.sets(st.integers(0, 40)), st.data())
def test_programs_of_cut_cases(start, length, gone, data):
    """Stretches of the cases without some lines, or with a word less."""
    lines = [line for k, line in enumerate(LINES[start : start + length]) if k not in gone]
    words = "".join(lines).split(" ")
    del words[data.draw(st.integers(0, len(words) - 1))]
    survives(NNX + " ".join(words).encode())
