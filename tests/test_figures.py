# SPDX-License-Identifier: Apache-2.0
"""The tables of the pages are written from the committed figures."""

import importlib.util
import json
import pathlib

import pytest

import benchmarks
from benchmarks import statecheck

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def tables():
    spec = importlib.util.spec_from_file_location("_figure_tables", ROOT / "docs/_figure_tables.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["performance.md", "many-devices.md", "statecheck.md", "guides/watch-a-model.md"])
def test_the_page_has_the_committed_figures(tables, page):
    """A figure on the page is one of docs/figures, so `make performance` changes nothing."""
    assert tables.blocks(page)
    assert tables.written(page, tables.records_in(tables.FIGURES)) == (ROOT / "docs" / page).read_text()


def test_every_table_has_a_benchmark(tables):
    """A block names a group of benchmarks, or a table of its own."""
    for page in tables.PAGES:
        assert set(tables.blocks(page)) <= {*benchmarks.GROUPS, *benchmarks.SCRIPTS, *tables.TABLES}
    assert {path.stem for path in tables.FIGURES.glob("*.json")} <= {*benchmarks.GROUPS, *benchmarks.SCRIPTS}


RECORD = {
    "title": "steps",
    "date": "2026-11-29T12:00:00+00:00",
    "quick": False,
    "versions": {"python": "3.11.1", "jax": "0.10.2"},
    "machine": {"processor": "A processor", "platform": "Linux x86_64", "cores": 2, "backend": "cpu", "device": "cpu"},
    "load_average": 1.0,
    "load_average_before": 0.5,
}


def case(name, limits=(), **ratios):
    figures = {to: {"median": x, "lower": x / 2, "upper": x * 2} for to, x in ratios.items()}
    return {"name": name, "rounds": 9, "limits": dict(limits), "ratios": figures, "seconds": None}


def test_the_worst_row_comes_first(tables):
    """Rows are in the order of their ratios, the largest first, and one above its limit is marked."""
    cases = [case("base", base=1.0), case("good", base=0.5), case("bad", {"base": 1.5}, base=3.0)]
    text = tables.group_table({**RECORD, "cases": cases})
    assert text.splitlines()[-2:] == [
        "| bad | base | **3** | 1.5 to 6 | 1.5, **missed** |",
        "| good | base | 0.5 | 0.25 to 1 |  |",
    ]
    assert "A processor, 2 cores, cpu; load average 0.5 before the run; python 3.11.1, jax 0.10.2; 2026-11-29." in text


def test_new_results_are_copied(tables, tmp_path, monkeypatch):
    """Results of groups that are on a page replace the committed figures; others are left out."""
    for name in ("eager", "unknown"):
        (tmp_path / f"{name}.json").write_text(json.dumps({**RECORD, "group": name, "cases": []}))
    (tmp_path / "guides").mkdir()
    for page in tables.PAGES:
        (tmp_path / page).write_text("<!-- figures: eager -->\n<!-- end -->\n")
    monkeypatch.setattr(tables, "DOCS", tmp_path)
    monkeypatch.setattr(tables, "FIGURES", tmp_path / "figures")
    tables.FIGURES.mkdir()
    assert tables.main([str(tmp_path)]) == 0
    assert [path.name for path in tables.FIGURES.iterdir()] == ["eager.json"]
    assert "A processor" in (tmp_path / "performance.md").read_text()


def test_the_page_of_statecheck_has_its_times_and_limits(tables, tmp_path, monkeypatch):
    """The median, the longest time, the slowest modules and the missing ones come from the benchmark's file."""

    def measured(names, limit_seconds):
        for number, name in enumerate(names[:-1]):
            yield {"name": name, "seconds": 13.0 - number, "cpu_seconds": 1.0, "compiled": 5, "findings": 0}

    monkeypatch.setattr(statecheck, "measured", measured)
    assert statecheck.main(["--quick", "--output", str(tmp_path)]) == 1
    text = tables.statecheck(tables.records_in(tmp_path))
    assert "Modules without a measured time: 1." in text
    assert "| longest | 13 s | 12 s, **missed** |" in text
    assert f"`{statecheck.LONGEST[0]}` 13 s" in text


def test_a_cost_of_a_watch_above_its_limit_is_bold(tables):
    """A limit may hold for single cases; a cost without one is never bold."""
    numbers = {"step_seconds_ratio": 1.2, "compile_seconds_ratio": 1.9, "temporary_bytes_ratio": 1.02}
    parts = {
        part: {"model": part, "cases": {"none": {}, "all": numbers, "some": numbers}}
        for part in ("layers", "deep", "scanned")
    }
    limits = {"layers": {"step": {"all": 1.12}, "compile": 2.0, "temporary": 1.01}}
    text = tables.watch_costs({"watch-costs": {**RECORD, "limits": limits, "parts": parts}})
    rows = text.splitlines()[-6:]
    assert rows[:2] == [
        "| layers | all | **1.200** | 1.900 | **1.020** |",
        "| layers | some | 1.200 | 1.900 | **1.020** |",
    ]
    assert rows[2] == "| deep | all | **1.200** | 1.900 | **1.020** |"
    assert rows[-1] == "| scanned | some | 1.200 | 1.900 | 1.020 |"
