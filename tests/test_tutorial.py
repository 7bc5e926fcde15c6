# SPDX-License-Identifier: Apache-2.0
"""The tutorial is one text in two files, and prints today what the committed notebook says."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jupytext
import pytest

from tallax.lint import lint

DOCS = Path(__file__).parents[1] / "docs"
PAGE, NOTEBOOK = DOCS / "tutorial.md", DOCS / "tutorial.ipynb"
NUMBER = re.compile(r"\d[\d,]*(?:\.\d+)?")


def cells_of(path):
    return json.loads(path.read_text())["cells"]


def texts_of(cell):
    """Returns what a cell printed and what its last line gave, without what is a picture or HTML as well."""
    return [
        (output.get("name", output["output_type"]), "".join(output.get("text") or output["data"]["text/plain"]))
        for output in cell.get("outputs", [])
        if output.get("data", {}).keys() <= {"text/plain"}
    ]


def rich_of(cell):
    return [sorted(output["data"]) for output in cell.get("outputs", []) if len(output.get("data", {})) > 1]


def test_the_page_and_the_notebook_are_one_text():
    """Cell by cell; `make notebook` writes the one from the other."""
    page = [(cell.cell_type, cell.source) for cell in jupytext.read(PAGE).cells]
    assert [(cell["cell_type"], "".join(cell["source"])) for cell in cells_of(NOTEBOOK)] == page
    assert sum(kind == "code" for kind, _ in page) > 10


def test_the_notebook_is_small_and_hides_its_machine():
    """No path, no address of an object, no time; one picture, and one table."""
    text = NOTEBOOK.read_text()
    assert len(text) < 200_000
    assert set(json.loads(text)["metadata"]) == {"kernelspec"}
    cells = cells_of(NOTEBOOK)
    assert [kinds for cell in cells for kinds in rich_of(cell)] == [
        ["text/html", "text/plain"],
        ["image/png", "text/plain"],
    ]
    outputs = json.dumps([output for cell in cells for output in cell.get("outputs", []) if "image" not in str(output)])
    for told in ("/tmp", "/home", "/root", "/Users", " at 0x", "ipykernel", "stderr", "Traceback", " ago"):
        assert told not in outputs, told
    assert all(cell["metadata"] == {} for cell in cells)


def test_the_linter_finds_the_mistake_and_nothing_else():
    """The mistake is there on purpose."""
    (found,) = lint([str(NOTEBOOK)]).findings
    code = "\n".join("".join(cell["source"]) for cell in cells_of(NOTEBOOK) if cell["cell_type"] == "code")
    assert found.code == "TLX002"
    assert code.splitlines()[found.line - 1].strip() == "self.mean = 0.9 * self.mean + 0.1 * x.mean(0)"


@pytest.mark.thorough
def test_the_notebook_prints_its_outputs(tmp_path):
    """In a fresh kernel: the same words, and the same numbers but for what another CPU rounds otherwise."""
    again = tmp_path / "tutorial.ipynb"
    command = [sys.executable, str(DOCS / "_notebook.py"), str(PAGE), str(again)]
    # It shows gradients that are nothing but rounding, as users compile them.
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=480, env=environment)
    assert done.returncode == 0, done.stderr[-5000:]
    before, now = cells_of(NOTEBOOK), cells_of(again)
    assert [rich_of(cell) for cell in now] == [rich_of(cell) for cell in before]
    printed = [texts_of(cell) for cell in before]
    assert sum(map(bool, printed)) >= 6
    for then, today in zip(printed, map(texts_of, now), strict=True):
        assert [(kind, NUMBER.sub("#", text)) for kind, text in today] == [
            (kind, NUMBER.sub("#", text)) for kind, text in then
        ]
        for (_, was), (_, text) in zip(then, today, strict=True):
            assert numbers_of(text) == pytest.approx(numbers_of(was), rel=0.1), text


def numbers_of(text):
    return [float(number.replace(",", "")) for number in NUMBER.findall(text)]
