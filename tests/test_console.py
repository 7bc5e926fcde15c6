# SPDX-License-Identifier: Apache-2.0
"""`sinks.Console`: a live table in the training terminal, and lines where there is none."""

from __future__ import annotations

import builtins
import importlib
import io
import re
import sys

import pytest
import rich
from flax import nnx
from rich.progress import Progress

import tallax
from tallax import sinks
from tallax.runs import Record
from tests.runs import record, watched


def terminal(width=80, height=24):
    """Returns a rich console that believes in a terminal."""
    return rich.console.Console(
        file=io.StringIO(), force_terminal=True, width=width, height=height, legacy_windows=False
    )


def text_of(console):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())


def test_without_a_terminal_it_prints_a_line_for_each_record(capsys):
    """Without a terminal, a line has the step and the scalars passed to the Logger, without the state."""
    model = tallax.StepCounter(nnx.Rngs(0))
    with tallax.Logger(sinks.Console(), every=2) as log:
        for step in range(1, 5):
            model()
            log(model, loss=1 / step, tokens=1000 * step)
    assert capsys.readouterr().out.splitlines() == [
        "step 1  loss=1  tokens=1,000",
        "step 2  loss=0.5  tokens=2,000",
        "step 4  loss=0.25  tokens=4,000",
    ]


def test_a_line_has_the_chosen_names(capsys):
    """The line shows matching names; without user scalars, the first of the state. A long line is not wrapped."""
    sink = sinks.Console("gate/fired")
    sink.write(record(1))
    sink.close()
    assert capsys.readouterr().out == "step 10  gate/fired/fired=3  gate/fired/total=10  gate/fired/rate=0.3\n"
    sink = sinks.Console()
    numbers = {name: value for name, value in record(1).scalars.items() if name != "loss"}
    sink.write(Record(1, 0.0, 0, numbers, {}, record(1).state))
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_line_has_the_most_unusual_sites(capsys):
    """Of the sites that are asked for, a line has the eight most unusual, each with its most important numbers."""
    sink = sinks.Console("layers/*:output")
    sink.write(watched(1, layers=12, nonfinite=3))
    line = capsys.readouterr().out
    assert line.startswith("step 1  layers/2:output: rms 3, largest 4, nonfinite 3  layers/")
    assert line.endswith("  ... and 4 more sites\n")
    assert line.count("rms") == 8
    sinks.Console("layers/0:*").write(watched(1))
    assert capsys.readouterr().out == "step 1  layers/0:output: rms 1, largest 2  layers/0:attention: entropy 1 to 3\n"
    sinks.Console("*0:output/rms").write(watched(1))
    assert capsys.readouterr().out == "step 1  layers/0:output/rms=1\n"


def test_in_a_terminal_it_is_a_table():
    """It is drawn at the first record, and as it is in the end once the sink is closed; then the cursor is back."""
    console = terminal()
    sink = sinks.Console(console=console, every_seconds=3600.0)
    sink.write(record(1))
    assert "step 10" in text_of(console)
    for k in range(2, 100):
        sink.write(record(k))
    assert "step 990 " not in text_of(console)  # not yet
    sink.close()
    assert "step 990 " in text_of(console)
    assert console.file.getvalue().endswith("\x1b[?25h")
    sink.close()


def test_it_keeps_no_more_than_it_draws():
    """However many records come, it keeps at most 200 values of a scalar, which no output shows."""
    sink = sinks.Console(console=terminal(), every_seconds=3600.0)
    for k in range(1000):
        sink.write(record(k))
    kept = [len(series.steps) for series in sink._history.scalars.values()]
    assert kept
    assert max(kept) <= 200
    sink.close()


def test_it_leaves_room():
    """The table is lower than the terminal, for any content."""
    console = terminal(height=20)
    sink = sinks.Console(console=console)
    sink.write(Record(1, 0.0, 0, {f"layer{k}": 1.0 for k in range(100)}))
    assert "... and 91 more" in text_of(console)
    sink.close()


def test_a_progress_bar_and_prints_beside_it():
    """A progress bar and the table share one console of rich; printed text stays above them."""
    console = terminal()
    with Progress(console=console, auto_refresh=False) as progress:
        task = progress.add_task("training", total=10)
        sink = sinks.Console(console=console, every_seconds=0.0)
        for k in range(1, 11):
            sink.write(record(k))
            progress.update(task, advance=1, refresh=True)
            print("printed", k)
        sink.close()
    text = text_of(console)
    assert "100%" in text
    assert "step 100 " in text
    assert "printed 10" in text


def test_an_older_rich_has_lines_beside_a_progress_bar(monkeypatch):
    """If rich refuses a second live display, the records are printed as lines."""
    from rich.errors import LiveError

    from tallax.sinks import _console

    def refuse(*_, **__):
        raise LiveError("Only one live display may be active at once")

    monkeypatch.setattr(_console.Live, "start", refuse)
    console = terminal()
    sink = sinks.Console(console=console)
    sink.write(record(1))
    sink.close()
    assert text_of(console) == "step 10  loss=0.5\n"


def test_an_error_in_the_loop_leaves_the_terminal_in_order():
    """The table with the last record is drawn, and the cursor is back, before the traceback is printed."""
    console = terminal()

    def train():
        with tallax.Logger(sinks.Console(console=console), every=1) as log:
            for step in range(1, 4):
                log(step=step, loss=1 / (3 - step))

    with pytest.raises(ZeroDivisionError):
        train()
    assert "step 2 " in text_of(console)
    assert console.file.getvalue().endswith("\x1b[?25h")


def test_without_rich_the_error_names_the_package(monkeypatch):
    """The error is that of a missing extra."""
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.partition(".")[0] == "rich":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.delitem(sys.modules, "tallax.sinks._console", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(tallax.MissingExtraError, match=r"pip install 'tallax\[console\]'"):
        importlib.import_module("tallax.sinks._console")
