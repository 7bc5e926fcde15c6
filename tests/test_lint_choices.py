# SPDX-License-Identifier: Apache-2.0
"""The files and rules that `tallax lint` chooses: files found, `[tool.tallax.lint]`, comments that silence."""

from __future__ import annotations

import builtins
import os
import pathlib
import sys

import pytest

from tallax.lint import _cli
from tallax.lint._files import found, matches
from tests.fake_rules import install, ran


@pytest.fixture(autouse=True)
def fake_rules(monkeypatch, tmp_path):
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)


def write(path, text="PARAM\n"):
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def reported(capsys, *arguments):
    """Returns where findings are, as `path:line`, and of which rule."""
    _, lines, errors = ran(capsys, *arguments)
    assert not errors
    return [f"{path}:{line} {rest.split()[0]}" for path, line, _, rest in (text.split(":", 3) for text in lines)]


def test_folders_of_others_are_left_out_unless_named(capsys):
    """Also where one that is named lies in one that would be left out."""
    for name in (
        "src/a.py",
        ".venv-3/b.py",
        "build/c.py",
        "x/node_modules/d.py",
        "e.txt",
        "__pycache__/f.py",
        "dist.py",
    ):
        write(name)
    assert reported(capsys, ".") == ["dist.py:1 TLX001", "src/a.py:1 TLX001"]
    assert reported(capsys, "build", "e.txt") == ["build/c.py:1 TLX001", "e.txt:1 TLX001"]
    assert reported(capsys, ".venv-3/b.py") == [".venv-3/b.py:1 TLX001"]


def test_each_file_once(capsys):
    """Whatever leads to it; the path without links wins, and loops end."""
    write("b/real.py")
    os.symlink("b", "a")
    os.symlink("..", "b/up")
    os.symlink("real.py", "b/alias.py")
    os.symlink("nowhere", "b/dangling.py")
    os.symlink("c", "c")
    write("elsewhere/site-packages/seen.py")
    os.symlink("elsewhere/site-packages", "linked")
    assert reported(capsys, ".", "b/real.py", "a") == ["b/real.py:1 TLX001", "linked/seen.py:1 TLX001"]
    assert reported(capsys, "b/real.py", "./b/real.py", os.path.abspath("b/real.py"))[0] == "b/real.py:1 TLX001"
    assert len(found(["b/real.py", os.path.abspath("b/real.py")], (), ".")[0]) == 1


def test_folders_nest_more_deeply_than_calls(capsys, tmp_path):
    """And are looked at."""
    depth = sys.getrecursionlimit() + 10
    for _ in range(depth):
        os.mkdir("d")
        os.chdir("d")
    write("a.py")
    os.chdir(tmp_path)
    assert reported(capsys, ".") == ["d/" * depth + "a.py:1 TLX001"]
    os.remove("d/" * depth + "a.py")
    for k in range(depth, 0, -1):  # shutil.rmtree would not come back
        os.rmdir("d/" * k)


def test_unreadable_files_are_reported(capsys, monkeypatch):
    """Is told, and makes the status 2; the rest is looked at."""
    write("a/b.py")
    write("c.py")
    write("d.py")
    scandir, opened = os.scandir, open

    def refusing(function, refused):
        def call(path, *rest, **more):
            if path == refused:
                raise PermissionError(13, "Permission denied")
            return function(path, *rest, **more)

        return call

    monkeypatch.setattr(os, "scandir", refusing(scandir, "./a"))
    monkeypatch.setattr(builtins, "open", refusing(opened, "c.py"))
    status, output, errors = ran(capsys, ".")
    assert (status, len(output)) == (2, 1)
    assert errors == ["./a: can't be read: Permission denied", "c.py: can't be read: Permission denied"]


@pytest.mark.parametrize(
    ("pattern", "path", "is_meant"),
    [
        ("*.py", "a/b.py", True),
        ("b", "a/b/c.py", True),
        ("b", "a/bb/c.py", False),
        ("a/b", "a/b/c.py", True),
        ("a/b/", "a/b/c.py", True),
        ("./a/*", "a/b/c.py", True),
        ("b/*", "a/b/c.py", False),
        ("**/b/*.py", "a/b/c.py", True),
        ("a/", "a/b/c.py", True),
        ("A", "a/b.py", False),
    ],
)
def test_patterns(pattern, path, is_meant):
    """Without a slash they are names of files and folders, with one whole paths; a folder means what is in it."""
    assert matches(pattern, path) is is_meant


def test_settings_of_a_project(capsys, monkeypatch):
    """From the nearest `pyproject.toml` with such a table above the first path; the command line has the last word."""
    write("sub/pyproject.toml", "[project]\nname = 'tallax'\n")
    write(
        "pyproject.toml",
        "[tool.tallax.lint]\n"
        "select = ['TLX00', 'odd-one']\n"
        "ignore = ['replaced-variable']\n"
        "exclude = ['made.py', 'sub/old']\n"
        "per-file-ignores = { 'sub/tests' = ['TLX001'], '*_odd.py' = ['odd-one'] }\n",
    )
    for name in ("a", "made", "sub/old/b", "sub/tests/c", "sub/d_odd"):
        write(f"{name}.py", "PARAM\nx += 1\nODD\n")
    expected = ["a.py:1 TLX001", "a.py:3 TLX012", "sub/d_odd.py:1 TLX001", "sub/tests/c.py:3 TLX012"]
    assert reported(capsys, ".") == expected
    assert reported(capsys, "sub", "a.py") == expected
    assert reported(capsys, "made.py", "sub/old/b.py") == []  # as pre-commit names them
    assert reported(capsys, "sub/old", "--select", "TLX002,TLX012") == [
        "sub/old/b.py:2 TLX002",
        "sub/old/b.py:3 TLX012",
    ]
    assert reported(capsys, "a.py", "--ignore", "param-state") == ["a.py:2 TLX002", "a.py:3 TLX012"]
    assert reported(capsys, "a.py", "--ignore", "TLX001", "--ignore", "TLX002,TLX01") == []
    assert len(reported(capsys, ".", "--no-config")) == 15
    monkeypatch.chdir("sub")
    assert reported(capsys, ".", "--exclude", "old/*,tests") == ["d_odd.py:1 TLX001"]


@pytest.mark.parametrize(
    ("toml", "expected"),
    [
        ("[tool.tallax.lint", ["is not TOML.", "mend it"]),
        ("tool.tallax.lint = 3", ["is a table.", "got:  3", "[tool.tallax.lint] on a line"]),
        (
            "[tool.tallax.lint]\nselects = []",
            ["selects: is not known.", "selects = []", "one of select, extend-select, ignore, exclude"],
        ),
        ("[tool.tallax.lint]\nignore = 'TLX001'", ["ignore: is a list of strings.", "'TLX001'", 'ignore = ["TLX002"]']),
        ("[tool.tallax.lint]\nexclude = [1]", ["exclude: is a list of strings.", "[1]", 'exclude = ["build/*"]']),
        ("[tool.tallax.lint]\nselect = ['TLX9']", ["select: no rule is called this.", "'TLX9'", "--list-rules"]),
        ("[tool.tallax.lint]\nselect = ['']", ["select: no rule is called this.", "''"]),
        ("[tool.tallax.lint]\nper-file-ignores = []", ["is a table of patterns.", "[]", '"tests/*" = ["TLX002"]']),
        (
            "[tool.tallax.lint.per-file-ignores]\n'a/*' = 'TLX001'",
            ["per-file-ignores 'a/*': is a list of strings.", '"a/*" = ["TLX002"]'],
        ),
        ("[tool.tallax.lint.per-file-ignores]\n'a/*' = ['odd']", ["a/*: no rule", "'odd'", "fix:  odd-one; "]),
    ],
)
def test_unknown_settings_are_errors(toml, expected, capsys):
    """Exits with 2 and an error that names the file, the key, what came and what to write."""
    write("pyproject.toml", toml)
    status, output, errors = ran(capsys, ".")
    assert (status, output) == (2, [])
    assert errors[0].startswith(os.path.abspath("pyproject.toml") + ": ")
    assert len(errors) == 3
    for part in expected:
        assert part in "\n".join(errors)
    assert "[tool.tallax.lint]" in errors[0] or "not TOML" in errors[0]


def test_a_broken_file_of_others(capsys):
    """A `pyproject.toml` without a word of tallax is none of our business."""
    write("pyproject.toml", "[[[")
    assert ran(capsys, ".") == (0, [], [])


def test_an_unknown_rule_on_the_command_line(capsys):
    """Exits with 2."""
    assert ran(capsys, "--select", "TLX001,E501")[2][:2] == ["select: no rule is called this.", "  got:  'E501'"]


@pytest.mark.parametrize(
    ("comment", "is_silent"),
    [
        ("# noqa", True),
        ("#NoQA", True),
        ("# noqa: TLX001", True),
        ("#noqa:tlx001", True),
        ("# noqa: E501, TLX001", True),
        ("# noqa: E501 TLX001 as it must be", True),
        ("# noqa: param-state", True),
        ("# type: ignore  # noqa : TLX001", True),
        ("# noqa  # why: E501", True),
        ("# noqa: E501", False),
        ("# noqa: TLX002", False),
        ("# noqa:TLX", True),
        ("# noqa: TLX00", True),
        ("# noqa: T", False),
        ("# noqa: TLX0011", False),
        ("# noqa: E501  # not TLX001", False),
        ("# noqa:", False),
        ("# noqa-not: no", False),
        ("; '# noqa'", False),
    ],
)
def test_comments_on_the_line(comment, is_silent, capsys):
    """With a colon they mean the rules that follow, without one all; other tools' codes mean nothing here."""
    write("a.py", f"x = PARAM  {comment}\n")
    assert reported(capsys, "a.py") == ([] if is_silent else ["a.py:1 TLX001"])


def test_comments_on_the_last_line_of_a_statement(capsys):
    """They mean all of the statement, of one with a body its head; those on lines between mean these lines."""
    write(
        "a.py",
        "f(  # noqa: TLX012\n    PARAM,  # nothing\n    PARAM,  # noqa\n    PARAM)\n"  # 1
        "f(\n    PARAM,\n    '''# noqa\n    '''\n)  # noqa\n"  # 5
        "\f\nclass A(\n    PARAM,\n):  # noqa: TLX001\n    PARAM\n"  # 10
        "# noqa\nPARAM\nx = \\\n    PARAM  # noqa\n",  # 15
    )
    assert reported(capsys, "a.py") == [f"a.py:{line} TLX001" for line in (2, 4, 14, 16)]


@pytest.mark.parametrize(("line", "is_skipped"), [(0, True), (9, True), (10, False)])
def test_files_that_ask_to_be_skipped(line, is_skipped, capsys):
    """By a comment of its own near the top."""
    lines = ["#"] * 20 + ["PARAM"]
    lines[line] = "# tallax: skip-file, it is made"
    write("a.py", "\n".join(lines))
    assert reported(capsys, ".") == ([] if is_skipped else ["a.py:21 TLX001"])
    write("a.py", "x = 1  # tallax: skip-file\nPARAM\n")
    assert reported(capsys, ".") == ["a.py:2 TLX001"]


def test_silenced_findings_are_not_fixed(capsys):
    """Nor those of rules that are not selected."""
    write("a.py", "x += 1  # noqa\ny += 1\n")
    assert _cli.main(["--fix", "--ignore", "TLX002", "."]) == 0
    assert _cli.main(["--fix", "."]) == 0
    assert pathlib.Path("a.py").read_text() == "x += 1  # noqa\ny[...] += 1\n"
