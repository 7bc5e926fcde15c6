# SPDX-License-Identifier: Apache-2.0
"""`tallax lint` as a command: formats, exit codes, explanations, start-up; with rules that look for words."""

from __future__ import annotations

import importlib.metadata
import io
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import types

import pytest
import yaml

import tallax.lint
from tallax.lint import _cli, _engine, _explain, _source
from tests.fake_rules import findings_in, install, notebook, ran

ROOT = pathlib.Path(__file__).parents[1]
TALLAX = [sys.executable, "-W", "error", "-c", "import tallax.cli; tallax.cli.main()"]


@pytest.fixture(autouse=True)
def fake_rules(monkeypatch, tmp_path):
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)


def write(path, text):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, newline="")
    return path


def test_a_line_for_each_finding(capsys):
    """In the order of path and place, with the summary on the error stream."""
    write("b.py", "x = 1\nx += 1\n")
    write("a/é.py", "y = PARAM, ODD\n")
    assert _cli.main(["."]) == 1
    output, errors = capsys.readouterr()
    assert output.splitlines() == [
        "a/é.py:1:5: TLX001 [param-state] 100% PARAM, here: or not",
        "a/é.py:1:12: TLX012 [odd-one] 100% ODD, here: or not",
        "b.py:2:1: TLX002 [replaced-variable] 100% x, here: or not",
    ]
    assert errors == "Found 3 problems in 2 files, 1 of which --fix can fix.\n"


def test_nothing_found(capsys):
    """Exits with 0 and prints nothing but a summary; without paths, of the current folder."""
    write("a.py", "x = 1\n")
    assert ran(capsys) == (0, [], [])


def test_colours_are_for_terminals(capsys, monkeypatch):
    """And not for those who ask for none."""
    write("a.py", "PARAM\n")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert ran(capsys, ".")[1][0].startswith("\x1b[1ma.py\x1b[0m:1:1: \x1b[1;31mTLX001\x1b[0m [param")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    assert ran(capsys, ".")[1][0].startswith("a.py:1:1: TLX001")


def test_json(capsys):
    """Findings with these keys, and `cell` if the file is a notebook; then the problems, and the number of files."""
    write("a.py", "x = 'é'; x += 1\n")
    write("b.ipynb", notebook(("markdown", "# PARAM"), ("code", "1\n2"), ("code", "3\nPARAM")))
    write("c.py", "(\n")
    status, output, errors = ran(capsys, ".", "--format", "json")
    assert (status, errors) == (1, [])
    report = json.loads("\n".join(output))
    assert (report["files"], report["skipped"]) == (3, 1)
    assert report["problems"] == [
        {"path": "c.py", "message": f"skipped: does not parse on {_source._PYTHON}: '(' was never closed", "line": 1}
    ]
    assert report["findings"] == [
        {
            "path": "a.py",
            "line": 1,
            "column": 11,  # UTF-8 bytes
            "end_line": 1,
            "end_column": 12,
            "code": "TLX002",
            "slug": "replaced-variable",
            "message": "100% x, here: or not",
            "fixable": True,
            "url": "docs/lint/TLX002.md",
        },
        {
            "path": "b.ipynb",
            "cell": 3,
            "line": 2,
            "column": 1,
            "end_line": 2,
            "end_column": 6,
            "code": "TLX001",
            "slug": "param-state",
            "message": "100% PARAM, here: or not",
            "fixable": False,
            "url": "docs/lint/TLX001.md",
        },
    ]
    empty = json.loads("\n".join(ran(capsys, "--format=json", write("d.py", ""))[1]))
    assert empty == {"files": 1, "skipped": 0, "findings": [], "problems": []}


def test_addresses_of_rules(capsys, monkeypatch):
    """If the package names its documentation, JSON and SARIF name the page of each rule."""
    links = {"Project-URL": ["Source, https://example.org/code", "Documentation, https://example.org/docs/"]}
    monkeypatch.setattr(
        importlib.metadata, "metadata", lambda name: types.SimpleNamespace(get_all=lambda key: links[key])
    )
    write("a.py", "PARAM\n")
    report = json.loads("\n".join(ran(capsys, ".", "--format", "json")[1]))
    assert report["findings"][0]["url"] == "https://example.org/docs/lint/TLX001.html"
    log = json.loads("\n".join(ran(capsys, ".", "--format", "sarif")[1]))
    rules = log["runs"][0]["tool"]["driver"]["rules"]
    assert rules[0]["helpUri"] == "https://example.org/docs/lint/TLX001.html"
    assert "## Code that is reported" in rules[0]["help"]["markdown"]
    # This is how the site names its pages: docs/lint/TLX001.md becomes lint/TLX001.html.
    assert "use_directory_urls: false" in (pathlib.Path(__file__).parents[1] / "mkdocs.yml").read_text()


def test_github(capsys):
    """Workflow commands; what would end a property or a command is escaped."""
    write("a,b.py", "PARAM\n")
    write("b.ipynb", notebook(("code", "1"), ("code", "3\nPARAM")))
    write("c.py", "(\n")
    assert ran(capsys, ".", "--format", "github") == (
        1,
        [
            "::warning file=a%2Cb.py,line=1,col=1,title=TLX001 [param-state]::100%25 PARAM, here: or not",
            "::warning file=b.ipynb,title=TLX001 [param-state]::cell 2, line 2: 100%25 PARAM, here: or not",
            f"::error file=c.py,line=1,title=tallax lint::skipped: does not parse on {_source._PYTHON}: "
            "'(' was never closed",
        ],
        [],
    )


def test_sarif(capsys):
    """The shape that SARIF 2.1.0 asks for; columns count characters."""
    write("a b.py", "x = 'é'; x += 1\n")
    write("b.ipynb", notebook(("code", "PARAM")))
    status, output, errors = ran(capsys, ".", "none.py", "--format", "sarif")
    log = json.loads("\n".join(output))
    assert (status, errors) == (2, [])
    assert log["version"] == "2.1.0"
    assert log["$schema"].endswith("sarif-schema-2.1.0.json")
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert run["columnKind"] == "unicodeCodePoints"
    assert [rule["id"] for rule in rules] == ["TLX001", "TLX002", "TLX012"]
    assert all(rule["shortDescription"]["text"] and rule["fullDescription"]["text"] for rule in rules)
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] == "warning"
    first, second = run["results"]
    assert first["message"] == {"text": "100% x, here: or not"}
    assert first["locations"] == [
        {
            "physicalLocation": {
                "artifactLocation": {"uri": "a%20b.py"},
                "region": {"startLine": 1, "startColumn": 10, "endLine": 1, "endColumn": 11},
            }
        }
    ]
    assert second["message"]["text"].startswith("cell 1, line 1: ")
    assert "region" not in second["locations"][0]["physicalLocation"]
    (invocation,) = run["invocations"]
    assert invocation["executionSuccessful"] is False
    (notification,) = invocation["toolExecutionNotifications"]
    assert notification["message"]["text"] == "none.py: there is no such file or folder"


def test_statistics(capsys):
    """The statistics count the findings of each rule, the most frequent first."""
    write("a.py", "PARAM, ODD, ODD\n")
    assert ran(capsys, ".", "--statistics")[:2] == (1, ["2  TLX012  odd-one", "1  TLX001  param-state"])


def test_standard_input(capsys, monkeypatch):
    """`-` is one file; what can't be written can't be fixed."""
    monkeypatch.setattr(sys, "stdin", types.SimpleNamespace(buffer=io.BytesIO(b"PARAM\n")))
    assert ran(capsys, "-")[1] == ["-:1:1: TLX001 [param-state] 100% PARAM, here: or not"]
    for arguments in (["-", "--fix"], ["-", "a.py"]):
        with pytest.raises(SystemExit, match="2"):
            _cli.main(arguments)


@pytest.mark.parametrize("arguments", [["--nonsense"], ["--format", "xml"], ["--sel", "TLX002"]])
def test_wrong_options(arguments, capsys):
    """Exit with 2; no option goes by its beginning, which could come to mean another."""
    with pytest.raises(SystemExit, match="2"):
        _cli.main(arguments)
    assert "tallax lint: error:" in capsys.readouterr().err


def test_a_path_that_is_not_there(capsys):
    """Exits with 2, and the others are looked at."""
    write("a.py", "PARAM\n")
    assert ran(capsys, "gone", "a.py") == (
        2,
        ["a.py:1:1: TLX001 [param-state] 100% PARAM, here: or not"],
        ["gone: there is no such file or folder"],
    )


def test_a_rule_that_fails_takes_one_file_with_it(capsys):
    """The others are judged, and the failure is told."""
    write("a.py", "PARAM\n")
    write("b.py", "CRASH\n")
    write("c.py", "DEEP\n")
    status, output, errors = ran(capsys, ".")
    assert (status, len(output)) == (2, 1)
    assert errors == [
        "b.py: tallax lint failed on it, KeyError: 'gone'",
        "c.py: skipped: nested too deeply for the rules",
    ]
    assert ran(capsys, "c.py")[0] == 1


def test_ctrl_c_and_a_broken_pipe_end_quietly(capsys, monkeypatch):
    """Without a traceback."""
    write("a.py", "PARAM\n")

    def interrupted(sources):
        raise KeyboardInterrupt

    monkeypatch.setattr(_engine, "findings_in", interrupted)
    assert ran(capsys, ".") == (130, [], [])
    script = "import os, signal; from tallax.lint._cli import main; raise SystemExit(main(['--list-rules']))"
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode in (1, -signal.SIGPIPE)


def test_explain(capsys):
    """By code, by name, or several by the beginning of a code; a rule that is not known is told with those near."""
    by_code = ran(capsys, "--explain", "TLX002")
    assert by_code == ran(capsys, "--explain", "replaced-variable")
    status, output, _ = by_code
    assert status == 0
    assert output[0] == "TLX002 [replaced-variable]  A Variable is replaced"
    assert output[-1] == "To silence a line, write # noqa: TLX002"
    assert {
        "    bad = 1",
        "    good = 1",
        "Why replaced-variable.",
        "Changes by --fix",
        "Writes into it.",
        "Code that is reported",
        "Calls.",
    } <= set(output)
    assert sum("To silence" in line for line in ran(capsys, "--explain", "TLX")[1]) == 3
    assert ran(capsys, "--explain", "param-stat") == (
        2,
        [],
        [
            "--explain: no rule is called this.",
            "  got:  'param-stat'",
            "  fix:  param-state; `tallax lint --list-rules` has all",
        ],
    )


def test_list_rules(capsys):
    """A line for each."""
    assert ran(capsys, "--list-rules")[1] == [
        "TLX001  param-state        State kept as nnx.Param",
        "TLX002  replaced-variable  A Variable is replaced (--fix)",
        "TLX012  odd-one            Something odd",
    ]


def test_the_function(tmp_path):
    """`tallax.lint.lint` says what the command says."""
    write("a.py", "PARAM\nODD\n")
    report = tallax.lint.lint(["."], tallax.lint.Config(ignore=("odd-one",)))
    assert [finding.code for finding in report.findings] == ["TLX001"]
    assert (report.problems, report.status, list(report.sources)) == ([], 1, ["a.py"])
    assert tallax.lint.lint([str(tmp_path / "a.py")]).findings == [
        finding._replace(path=str(tmp_path / "a.py"))
        for finding in findings_in(tallax.lint.lint(["a.py"]).sources.values())
    ]


def test_it_starts_without_jax_and_without_typer():
    """Nothing is imported but the standard library; `tallax --help` names it all the same."""
    write("a.py", "from flax import nnx\n")
    script = (
        "import sys; before = set(sys.modules) | {'typer'}\n"
        "sys.modules['typer'] = None; sys.argv = ['tallax', 'lint', 'a.py', '--format', 'sarif']\n"
        "import tallax.cli\n"
        "try: tallax.cli.main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "names = [name.split('.') for name in set(sys.modules) - before]\n"
        "assert {name[0] for name in names} - sys.stdlib_module_names == {'tallax'}, names\n"
        "parts = {name[1] for name in names if name[0] == 'tallax' and len(name) > 1}\n"
        "assert parts == {'_lazy', 'cli', 'lint'}, parts\n"
    )
    done = process(sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    assert "lint" in process(*TALLAX, "--help").stdout
    with_typer = "import sys, tallax.cli; sys.argv = ['tallax', '--', 'lint', '--list-rules']; tallax.cli.main()"
    assert process(sys.executable, "-c", with_typer).stdout.startswith("TLX0")
    assert process(*TALLAX, "lint", "none.py").returncode == 2


def process(*command):
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_hooks_work():
    """Each entry of `.pre-commit-hooks.yaml` is a command that takes files."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text())
    assert [hook["id"] for hook in hooks] == ["tallax-lint", "tallax-lint-fix"]
    write("a.py", "x = 1\n")
    for hook in hooks:
        assert hook["types_or"] == ["python", "jupyter"]
        program, *arguments = shlex.split(hook["entry"])
        assert program == "tallax"
        assert process(*TALLAX, *arguments, "a.py").returncode == 0


def test_the_pages_are_the_rules(monkeypatch, tmp_path):
    """The committed pages are those that `make pages` writes."""
    monkeypatch.undo()
    folder = ROOT / "docs" / "lint"
    assert {path.name: path.read_text() for path in folder.iterdir()} == _explain.pages()
    _explain._write(os.fspath(tmp_path / "new"))
    assert {path.name for path in (tmp_path / "new").iterdir()} == set(_explain.pages())
