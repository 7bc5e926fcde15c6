# SPDX-License-Identifier: Apache-2.0
"""`tallax lint --fix` and `--diff`: what changes, what is kept byte for byte, and what is left alone with a word."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import stat

import pytest

from tallax.lint import Edit, Finding, _fixes, _source
from tallax.lint._reading import decoded
from tests.fake_rules import install, notebook, ran


@pytest.fixture(autouse=True)
def fake_rules(monkeypatch, tmp_path):
    install(monkeypatch)
    monkeypatch.chdir(tmp_path)


A, B = pathlib.Path("a.py"), pathlib.Path("b.ipynb")


def fixed(capsys, data, path=A, *, status=0):
    """Returns what `--fix` makes of some bytes; a second time changes nothing more."""
    path.write_bytes(data)
    assert ran(capsys, "--fix", path)[0] == status
    once = path.read_bytes()
    assert ran(capsys, "--fix", path)[0] == status
    assert path.read_bytes() == once
    return once


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (b"x += 1 ; y += 1 # why\n", b"x[...] += 1 ; y[...] += 1 # why\n"),
        (b"if a:\r\n\tx += 1\r\n  \r\n", b"if a:\r\n\tx[...] += 1\r\n  \r\n"),
        (b"a = 1\rx += 1", b"a = 1\rx[...] += 1"),
        (b"\x0cx += 1\n\x0c\ny += 1", b"\x0cx[...] += 1\n\x0c\ny[...] += 1"),
        (b"\xef\xbb\xbfx += 1\n", b"\xef\xbb\xbfx[...] += 1\n"),
        (b"# coding: latin-1\ns = '\xe9'; x += 1\n", b"# coding: latin-1\ns = '\xe9'; x[...] += 1\n"),
        ("s = 'é𝔘\u2028\x1c'; ñ += 1\n".encode(), "s = 'é𝔘\u2028\x1c'; ñ[...] += 1\n".encode()),
        (b"IMPORT\r\nx = 1\n", b"import a\r\nimport b\r\nx = 1\n"),
    ],
)
def test_all_else_stays(before, after, capsys):
    """Comments, spaces, encodings, marks and line ends; new lines end as the file's first one does."""
    assert fixed(capsys, before) == after


def test_findings_without_a_fix_are_reported(capsys):
    """The findings that remain, after what was mended; with 1 while there are some."""
    A.write_text("x += 1\nPARAM\n")
    status, output, errors = ran(capsys, "--fix", ".")
    assert (status, output) == (1, ["a.py:2:1: TLX001 [param-state] 100% PARAM, here: or not"])
    assert errors == ["1 problem in 1 file fixed."]


@pytest.mark.parametrize(
    ("before", "why"),
    [
        (b"x += 1\nFLIP\n", "they do not settle"),
        (b"x += 1\nBREAK\n", f"what they leave does not parse on {_source._PYTHON}: '(' was never closed"),
    ],
)
def test_files_that_are_left_alone(before, why, capsys):
    """Whose edits never settle, or do not parse; others are fixed."""
    pathlib.Path("b.py").write_text("y += 1\n")
    A.write_bytes(before)
    status, output, errors = ran(capsys, "--fix", ".")
    assert (status, len(output)) == (1, 2)
    assert errors == [f"a.py: not mended: the edits can't be applied: {why}", "1 problem in 1 file fixed."]
    assert A.read_bytes() == before
    assert pathlib.Path("b.py").read_text() == "y[...] += 1\n"


def test_encodings_that_do_not_come_back(capsys):
    """A file that would not be written as it was read is left alone."""
    before = b"# coding: utf-7\ns = '+AGE-'; x +-= 1\n"  # an `a` that need not be shifted
    A.write_bytes(before)
    status, _, errors = ran(capsys, "--fix", ".")
    assert status == 1
    assert errors == [
        "a.py: not mended: what it holds can't be kept, or has changed since it was read",
        "0 problems in 0 files fixed.",
    ]
    assert A.read_bytes() == before


def edits_of(*edits):
    return Finding("a.py", 1, 1, "TLX002", "replaced-variable", "", tuple(edits))


def test_overlapping_edits():
    """Of two findings whose edits touch the same text one waits; of one finding all edits are made or none."""
    source = decoded("a.py", b"f(a, b)\n")
    whole = edits_of(Edit(1, 0, 1, 7, "g(b)"))
    inner, split = edits_of(Edit(1, 2, 1, 3, "c")), edits_of(Edit(1, 0, 1, 1, "h"), Edit(1, 2, 1, 3, "d"))
    behind, twice = edits_of(Edit(1, 3, 1, 3, ".x")), edits_of(Edit(1, 3, 1, 3, ".x"), Edit(1, 5, 1, 6, "e"))
    wrong = edits_of(Edit(1, 0, 1, 3, "i"), Edit(1, 1, 1, 2, "j"))

    def made(*findings):
        source_now, count = _fixes.edited(source, findings)
        return source_now.text, count

    assert made(whole, inner, split) == ("g(b)\n", 1)
    assert made(inner, whole, split) == ("f(c, b)\n", 1)
    assert made(split, inner) == ("h(d, b)\n", 1)
    assert made(inner, behind, twice) == ("f(c.x, e)\n", 3)
    assert made(behind, edits_of(Edit(1, 3, 1, 3, ".y"))) == ("f(a.x, b)\n", 1)
    assert made(wrong) == ("f(a, b)\n", 0)


@pytest.mark.parametrize(
    "edit",
    [Edit(3, 0, 3, 0, ""), Edit(1, 9, 1, 9, ""), Edit(1, 3, 1, 1, ""), Edit(1, 1, 2, 1, ""), Edit(0, 0, 1, 0, "")],
)
def test_edits_outside_of_the_file(edit):
    """Are refused."""
    with pytest.raises(ValueError, match=r"there is no line|has no column|ends before"):
        _fixes.applied("abcdefg\n", [edit])


def test_many_edits(capsys):
    """Ten thousand in one file are applied in a moment."""
    A.write_text("if a:\n    x += 1\n" * 10_000)
    assert ran(capsys, "--fix", A) == (0, [], ["10,000 problems in 1 file fixed."])
    assert A.read_text() == "if a:\n    x[...] += 1\n" * 10_000


def test_at_the_end_of_the_file():
    """A line may follow the last."""
    assert _fixes.applied("a\n", [Edit(2, 0, 2, 0, "b\n")]) == "a\nb\n"
    assert _fixes.applied("", [Edit(1, 0, 1, 0, "b\n")]) == "b\n"


def test_diff(capsys):
    """A diff that `patch` takes, and nothing written; the status is that of the files as they are."""
    A.write_bytes(b"a = 1\r\nx += 1")
    assert ran(capsys, "--diff", ".") == (
        1,
        [
            *("--- a.py", "+++ a.py", "@@ -1,2 +1,2 @@", " a = 1"),
            *("-x += 1", "\\ No newline at end of file", "+x[...] += 1", "\\ No newline at end of file"),
        ],
        ["1 problem in 1 file would be fixed."],
    )
    assert A.read_bytes() == b"a = 1\r\nx += 1"
    A.write_text("x = 1\n")
    assert ran(capsys, "--diff", ".")[:2] == (0, [])


def test_permissions_and_links_stay(capsys, tmp_path):
    """A link is written through, the mode is kept, and no other file is left behind."""
    real = tmp_path / "real" / "r.py"
    real.parent.mkdir()
    real.write_text("x += 1\n")
    real.chmod(0o750)
    A.symlink_to(real)
    assert ran(capsys, "--fix", A)[0] == 0
    assert A.is_symlink()
    assert real.read_text() == "x[...] += 1\n"
    assert stat.S_IMODE(real.stat().st_mode) == 0o750
    assert os.listdir(real.parent) == ["r.py"]


def test_files_that_cannot_be_written(capsys, monkeypatch):
    """Is told, makes the status 2, and stays whole."""
    A.write_text("x += 1\n")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    status, _, errors = ran(capsys, "--fix", ".")
    assert (status, errors[0]) == (2, "a.py: not mended: can't be written: No space left on device")
    assert A.read_text() == "x += 1\n"
    assert os.listdir() == ["a.py"]


CELLS = (
    ("markdown", "# x += 1\n"),
    ("code", "%matplotlib inline\n!pip install x \\\n  y += 1 \\\n  z += 1\nx += 1  # \u00e9\n"),
    ("code", "%%bash\nx += 1"),
    ("code", "%%time\ny += 1\nfiles = !ls x += 1\nif y:\n    !echo x += 1\n    y?"),
    ("code", "def broken(:\n    x += 1"),
    ("code", "z = (1\n  % 2)\nw = 1 \\\n  % 2\ns = '''\n%a\n'''\nz += 1"),
)


@pytest.mark.parametrize("style", ["nbformat", "ascii", "compact", "tabs", "one string", "escaped", "mark", "crlf"])
def test_notebooks(style, capsys):
    """Only the code that changed changes; magics, shell lines and what does not parse are not looked at."""

    def styled(cells):
        text = notebook(*cells)
        whole = json.loads(text)
        if style == "one string":
            for cell in whole["cells"]:
                cell["source"] = "".join(cell["source"])
        made = {
            "ascii": text,
            "compact": json.dumps(whole, ensure_ascii=False, separators=(",", ":")),
            "tabs": json.dumps(whole, ensure_ascii=False, indent="\t", sort_keys=True),
            "one string": json.dumps(whole, indent=4),
            "escaped": text.replace("(", "\\u0028"),
        }.get(style, json.dumps(whole, ensure_ascii=False, indent=1) + "\n")
        data = made.encode("utf-8-sig" if style == "mark" else "utf-8")
        return data.replace(b"\n", b"\r\n") if style == "crlf" else data

    after = [list(cell) for cell in CELLS]
    after[1][1] = after[1][1].replace("x += 1  #", "x[...] += 1  #")
    after[3][1] = after[3][1].replace("y += 1", "y[...] += 1")
    after[5][1] = after[5][1].replace("z += 1", "z[...] += 1")
    assert fixed(capsys, styled(CELLS), B, status=1) == styled(after)
    status, output, errors = ran(capsys, B)
    assert (status, output) == (1, [])
    assert errors == [f"b.ipynb:cell 5:1: cell skipped: does not parse on {_source._PYTHON}: invalid syntax"]


@pytest.mark.parametrize(
    "line", ["\\x00" * 5000, " " * 20_000 + "a", "'" * 20_001, "a." * 10_000, "(" * 20_000, "=" * 20_000]
)
@pytest.mark.parametrize("quote", ["", '"""'])
def test_lines_that_are_hard_to_read(line, quote, capsys):
    """Take no longer than their length."""
    B.write_text(notebook(("code", f"{quote}\n{line}\n{quote}\n")))
    signal.alarm(60)  # ends the process, as nothing else would
    status = ran(capsys, B)[0]
    signal.alarm(0)
    assert status in (0, 1)


def test_cells_that_would_not_parse_any_more(capsys):
    """Leave the notebook as it was."""
    before = notebook(("code", "(\n"), ("code", "x += 1\nBREAK"))
    B.write_text(before)
    status, _, errors = ran(capsys, "--fix", B)
    assert status == 1
    assert errors[1].startswith("b.ipynb: not mended: the edits can't be applied: what they leave does not parse")
    assert B.read_text() == before


def test_places_in_notebooks(capsys):
    """Are the cell's number among all cells, and the line in it."""
    B.write_text(notebook(*CELLS))
    assert [line.split(" TLX")[0] for line in ran(capsys, B)[1]] == [
        "b.ipynb:cell 2:5:1:",
        "b.ipynb:cell 4:2:1:",
        "b.ipynb:cell 6:8:1:",
    ]


@pytest.mark.parametrize(
    ("text", "status", "why"),
    [
        ("", 1, "not a notebook in JSON"),
        ("[" * 100_000, 1, "not a notebook in JSON"),
        ('{"cells": [3]}', 1, "not a notebook of format 4"),
        ('{"worksheets": []}', 1, "not a notebook of format 4"),
        ("3", 1, "not a notebook of format 4"),
        ('{"cells": [], "metadata": []}', 1, "not a notebook of format 4"),
        ('{"cells": [], "metadata": {"kernelspec": {"language": "julia"}}}', 0, "a notebook in julia"),
    ],
)
def test_files_that_are_not_notebooks(text, status, why, capsys):
    """Is skipped with a word; one in another language is nobody's fault."""
    B.write_text(text)
    told, output, (error,) = ran(capsys, B)
    assert (told, output) == (status, [])
    assert error.startswith(f"b.ipynb: skipped: {why}")
