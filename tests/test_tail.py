# SPDX-License-Identifier: Apache-2.0
"""`tallax tail`: a run in the terminal, while it is written; and the drawing in text that it shares with others."""

from __future__ import annotations

import fcntl
import io
import math
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time

import numpy as np
import pytest
from rich.console import Console

from tallax.runs import Bins, History, Record, Run
from tallax.runs._bars import Axis, bars_of, one_line, sparkline
from tallax.runs._jsonl_format import Encoder
from tallax.runs._keys import sort_key
from tallax.runs._live_table import speed_of, table
from tallax.runs._number_format import ago, change, number
from tests.runs import odd_records, record, watched, write

COMMAND = [sys.executable, "-W", "error", "-c", "import tallax.cli; tallax.cli.main()"]


def history(records, keep=None):
    found = History(keep)
    for each in records:
        found.add(each)
    return found


def drawn(source, width=100, height=40, patterns=(), title="runs/1", now=None):
    """Returns the lines of the table as a terminal of that width shows them."""
    console = Console(file=io.StringIO(), width=width, height=height, color_system=None)
    console.print(table(source, title, patterns=patterns, width=width, height=height, now=now))
    return console.file.getvalue().splitlines()


def line_of(lines, name):
    return next(line for line in lines if line.startswith(name))


# --- the table --------------------------------------------------------------------------------------------------------


def test_values_are_exact_and_changes_are_marked():
    """An int is shown in full with its growth, a float to five digits with its change, a histogram as its bars."""
    lines = drawn(history(record(k) for k in range(1, 9)), now=1.7e9 + 11)
    assert lines[0].split("  ") == ["runs/1", "step 80", "10 steps/s", "last record 3 s ago"]
    assert line_of(lines, "seen").split()[1:3] == ["9,007,199,254,746,113", "+64/step"]
    assert line_of(lines, "loss").split()[1:3] == ["0.11111", "-0.0139"]
    assert "-4  ▁▂▅█▄▂▁ 4" in line_of(lines, "gate/logits ")
    assert "0 ▂▄▆█ 3" in line_of(lines, "gate/load ")


def test_the_users_scalars_come_first_and_entries_by_number():
    """The user's scalars come first; entry 10 of an array comes after entry 9."""
    numbers = {**{f"a/{n}": n for n in range(11)}, "zloss": 1.0}
    lines = drawn(history([Record(1, 0.0, 0, numbers)]))
    names = [line.split()[0] for line in lines[3:]]
    assert names == ["a/0", "a/1", *[f"a/{n}" for n in range(2, 11)], "zloss"]  # all of them the user's
    lines = drawn(history([record(3)]))
    assert lines[3].startswith("loss")


@pytest.mark.parametrize("width", [40, 60, 80, 200])
@pytest.mark.parametrize("height", [8, 20, 200])
def test_it_fits(width, height):
    """The table fits into the terminal for any content."""
    lines = drawn(history(odd_records()), width, height, now=1.7e9)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    assert "18,446,744,073,709,551,604" in "".join(lines) or height < 20


def test_rows_that_do_not_fit_are_counted():
    """Entries of an array are merged into one row first; then a line reports the omitted rows."""
    numbers = {f"layer{n}/norm": 1.0 for n in range(200)} | {f"load/{n}": n for n in range(32)}
    lines = drawn(history([Record(1, 0.0, 0, numbers)]), height=25)
    assert lines[-1] == "... and 181 more; narrow with --names 'layer20/*'"
    lines = drawn(history([Record(1, 0.0, 0, numbers)]), height=25, patterns=["load/*"])
    assert line_of(lines, "load/0..31").split()[1:3] == ["32", "entries"]
    assert len(drawn(history([Record(1, 0.0, 0, numbers)]), patterns=["load/1*"])) == 3 + 11


def test_a_site_is_one_row():
    """A summary has columns and the RMS over the steps, a stack a row for each layer; other sites have one text."""
    lines = drawn(history(watched(k, rms=float(k)) for k in (1, 2, 3)), width=110)
    start = lines.index(line_of(lines, "site"))
    assert lines[start].split() == ["site", *["rms", "mean", "largest", "at", "zeros", "non-finite", "recent", "rms"]]
    assert [line.split()[0] for line in lines[start + 1 : start + 8]] == [
        *(f"layers/{k}:output" for k in range(5)),
        "stack/up[0]:output",
        "stack/up[1]:output",
    ]
    assert line_of(lines, "layers/2:output").split() == ["layers/2:output", "3", "0.5", "4", "3", "0", "0", "▁▅█"]
    assert line_of(lines, "layers/0:attention") == "layers/0:attention        entropy 1 to 3"
    assert line_of(lines, "head/kernel:update_ratio") == "head/kernel:update_ratio  0.25"
    assert line_of(lines, "head:output_histogram").split()[1:] == ["-4", "▂▃▄▅▆▇█", "4"]
    assert not any("size" in line or "idle" in line or "queries" in line for line in lines)


@pytest.mark.parametrize("height", [8, 12, 16, 24, 200])
@pytest.mark.parametrize("width", [60, 80, 120])
def test_sites_fit(width, height):
    """The scalars and the sites share the terminal; the most unusual sites stay, and the others are counted."""
    lines = drawn(history([watched(1, layers=12, largest=99.0)]), width, height)
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    assert line_of(lines, "loss")
    sites = [line for line in lines if ":output " in line or ":attention " in line or ":update_ratio" in line]
    if height < 200:
        assert lines[-1].startswith(f"... and {14 + 12 + 2 - len(sites)} more sites") == (height > 8 or not sites)
    if height == 16:
        assert "layers/2:output" in sites[0]
        assert "less unusual" in lines[-1]


def test_layers_are_in_order():
    """Layer 10 follows layer 9, and a module stands before the modules in it."""
    names = ["layers/10:output/rms", "layers/9/up:output/rms", "layers/9:output/rms", "layers/9/up10", "layers/9/up9"]
    assert sorted(names, key=sort_key) == [names[2], names[1], names[4], names[3], names[0]]


@pytest.mark.parametrize(
    ("pattern", "selected"),
    [
        ("layers/1:output", ["layers/1:output"]),
        ("layers/1", ["layers/1:output", "layers/1:attention"]),
        ("*:attention", ["layers/0:attention", "layers/1:attention"]),
        ("layers/1:output/*", [f"layers/1:output/{name}" for name in ("largest", "mean", "nonfinite", "rms", "zeros")]),
        ("layers/*:output/size", ["layers/0:output/size", "layers/1:output/size"]),
        ("layers/*/rms", ["layers/0:output/rms", "layers/1:output/rms"]),
        ("*/entropy", [f"layers/{k}:attention/entropy/{head}" for k in range(2) for head in range(3)]),
        ("layers/0:attention/queries/1", ["layers/0:attention/queries/1"]),
    ],
)
def test_names_choose_sites_and_numbers(pattern, selected):
    """A pattern of sites keeps one row for each, one of numbers a row for each; a wildcard leaves bookkeeping out."""
    lines = drawn(history([watched(2, layers=2)]), patterns=[pattern])
    names = [line.split()[0] for line in lines[2:] if line and not line.startswith(("name", "site"))]
    assert names == selected


def test_nothing_to_show_is_said():
    """A run without records, and patterns without matches, are reported."""
    assert drawn(history([]))[-1] == "no records yet"
    assert drawn(history([record(1)]), patterns=["nope*"])[-1] == "none of 14 names matches nope*"
    assert drawn(history([watched(1)]), patterns=["idle:*"])[-1] == "no site saw anything so far"


def test_a_name_is_never_markup():
    """Brackets in a name are shown as they are."""
    assert line_of(drawn(history(odd_records()), width=120, height=90), "[red]bracket[/]")


def test_the_speed_is_that_of_most_records():
    """A gap, such as a resume a day later, does not change the speed; nor do records of one step."""
    found = History()
    for step, when in [(10, 1.0), (20, 2.0), (20, 2.5), (30, 86_400.0), (40, 86_401.0), (50, 86_402.0)]:
        found.add(Record(step, when))
    assert speed_of(found) == 10.0
    assert speed_of(history([record(1)])) is None


def test_a_history_may_keep_the_last_values_only():
    """At most twice the requested number of values is kept, including the last ones."""
    found = history((Record(step, float(step), 0, {"x": step}) for step in range(1000)), keep=10)
    assert 10 <= len(found.steps) <= 20
    assert found.scalars["x"].steps[-10:] == found.steps[-10:] == list(range(990, 1000))


# --- bars -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ([], ""),
        ([3], "▄"),
        ([3, 3, 3], "▄▄▄"),
        ([0, 1, 2, 3], "▁▃▅█"),
        ([0.0, math.nan, 1.0], "▁?█"),
        ([math.nan], "?"),
        ([math.inf, -math.inf, 0.0, 1.0], "↑↓▁█"),
        ([2**64, 2**64 + 1], "▁█"),
        ([10**400, 10**400 + 1], "▁█"),
        ([-1.7e308, 1.7e308], "▁█"),
        ([5e-324, 0.0], "█▁"),
    ],
)
def test_sparklines(values, line):
    """The lowest value has the lowest bar and the highest the highest; NaN and infinities have signs."""
    assert sparkline(values) == line


def test_a_histogram_in_one_line_is_drawn_over_its_values():
    """Even bins are drawn as they are; others on a logarithmic axis, zeros at zero."""
    assert one_line(np.array([0, 1, 8, 0])) == "▁█"
    assert bars_of(Bins(np.linspace(0, 1, 5), np.array([1, 2, 4, 0], np.uint64)), 20) == "0 ▂▄█  1"
    decades = Bins(np.geomspace(1e-3, 1e3, 7), np.array([1, 1, 1, 1, 1, 8], np.uint64))
    assert bars_of(decades, 30) == "0.001 " + "▁" * 17 + "▅███ 1k"
    # The bucket of zeros ends at the smallest float; those next to it are far away.
    zeros = Bins(np.array([-1e-45, 1e-45, 0.5, 1.0]), np.array([8, 0, 4], np.uint64))
    text = bars_of(zeros, 14)
    assert (text[:3], text[-2:], text[3:6]) == ("0 █", " 1", "   ")


def test_nothing_is_lost_when_bins_are_laid_on_others():
    """On the axis of several histograms the counts of each still add up to its total."""
    many = [each.histograms["moving"] for each in odd_records()]
    for bins in (many, [each.histograms["decades"] for each in odd_records()[1:]]):
        axis = Axis.of(bins)
        for each in bins:
            assert axis.spread(each, 17).sum() == pytest.approx(each.total)
            np.testing.assert_allclose(axis.place(axis.value(axis.place(each.edges))), axis.place(each.edges))


def test_numbers_in_words():
    """Counts up to 64 bits are in full, with a sign; durations have two units."""
    assert number(2**64 - 1) == "18,446,744,073,709,551,615"
    assert number(-(2**63)) == "-9,223,372,036,854,775,808"
    assert number(-(10**300)) == "-1.0000e+300"
    assert (number(0.1), number(1e-7), number(math.inf), number(True)) == ("0.1", "1e-07", "inf", "1")
    assert ago(-5.0) == "0 s"
    assert change(0, 2**70, 1) == "+1.18e+21/step"
    assert change(5, 9, 0) == "+4"
    assert change(1, 2, 3) == "+0.333/step"
    assert change(math.nan, math.nan, 1) == "="
    assert change(1.0, math.inf, 1) == change(-1.7e308, 1.7e308, 1) == change(10**400, 1.0, 1) == ""


# --- the command ------------------------------------------------------------------------------------------------------


def run(*arguments):
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)


def test_without_a_terminal_it_prints_the_table_once(tmp_path):
    """Its output can be piped; then nothing is left out."""
    done = run("tail", write(tmp_path, odd_records()), "--names", "array")
    assert (done.returncode, done.stderr) == (0, "")
    assert sum(line.startswith("array/") for line in done.stdout.splitlines()) == 20


def test_looking_needs_no_jax(tmp_path):
    """None of the commands that look at runs imports JAX or Flax."""
    folder = write(tmp_path, [record(1), record(2)])
    script = (
        "import sys, tallax.cli\n"
        "from tallax.runs import _html, _matplotlib, _plot\n"
        "try: tallax.cli.main()\n"
        "finally: print({name.partition('.')[0] for name in sys.modules} & {'jax', 'jaxlib', 'flax'})"
    )
    for command in ("tail", "show"):
        done = subprocess.run(
            [sys.executable, "-c", script, command, folder], capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout.splitlines()[-1] == "set()", done.stderr


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *arguments, width=80, height=24):
        self._master, self.slave = pty.openpty()
        fcntl.ioctl(self.slave, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
        self.before = termios.tcgetattr(self.slave)
        variables = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
        self._process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)],
            stdin=self.slave,
            stdout=self.slave,
            stderr=self.slave,
            env={**variables, "TERM": "xterm-256color"},
            start_new_session=True,
        )
        self.seen = ""

    def wait_for(self, text, seconds=30.0):
        """Reads until a text comes, colors taken out."""
        end, raw = time.monotonic() + seconds, b""
        while text not in self.seen:
            assert time.monotonic() < end, self.seen
            if select.select([self._master], [], [], 0.1)[0]:
                raw += os.read(self._master, 65_536)
                self.seen = re.sub(r"\x1b\[[0-9;]*m", "", raw.decode(errors="ignore"))

    def press(self, keys):
        os.write(self._master, keys)

    def interrupt(self):
        self._process.send_signal(signal.SIGINT)

    def end(self):
        """Returns the exit code, and all that was written until then."""
        end = time.monotonic() + 30
        rest = b""
        while self._process.poll() is None and time.monotonic() < end:
            if select.select([self._master], [], [], 0.05)[0]:
                rest += os.read(self._master, 65_536)
        while select.select([self._master], [], [], 0.05)[0]:
            rest += os.read(self._master, 65_536)
        after = termios.tcgetattr(self.slave)
        return self._process.wait(1), rest.decode(errors="ignore"), after == self.before

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._master)
        os.close(self.slave)


@pytest.mark.parametrize("leave", ["q", "ctrl-c"])
def test_it_follows_a_run_and_leaves_the_terminal_as_it_was(tmp_path, leave):
    """It waits for the run, follows it, also after an earlier resume; q and Ctrl-C end it with 0."""
    folder = tmp_path / "run"
    with Terminal("tail", folder, "--every", "0.05", "--wait", width=60, height=20) as terminal:
        terminal.wait_for("waiting for")
        write(folder, [record(1), record(2)])
        terminal.wait_for("step 20 ")
        with (folder / "records.jsonl").open("ab") as file:
            file.write(Encoder().line(record(3)))
        terminal.wait_for("step 30 ")
        write(folder, [record(1), record(2, resumed=1.0)])
        terminal.wait_for("resumed")
        terminal.press(b"q") if leave == "q" else terminal.interrupt()
        code, rest, restored = terminal.end()
    assert code == 0
    assert restored
    assert "\x1b[?1049l" in rest  # back from the alternate screen
    assert "\x1b[?25h" in rest  # with its cursor
    assert "Traceback" not in rest
    assert "resumed" in rest.partition("\x1b[?1049l")[2]  # the last table stays


def test_a_run_that_is_damaged_meanwhile_ends_it(tmp_path):
    """The error is on the screen once that is the terminal's own again, and the exit code 2."""
    folder = write(tmp_path, [record(1)])
    with Terminal("tail", folder, "--every", "0.05") as terminal:
        terminal.wait_for("step 10 ")
        with (folder / "records.jsonl").open("ab") as file:
            file.write(b"not a record\n")
        code, rest, restored = terminal.end()
    assert code == 2
    assert restored
    assert "is not a record of a run" in rest.partition("\x1b[?1049l")[2]


def test_a_run_that_is_not_there_is_an_error(tmp_path):
    """Without --wait, a missing run exits with 2 and explains the accepted paths."""
    done = run("tail", tmp_path / "nope")
    assert done.returncode == 2
    assert done.stderr.startswith(f"{tmp_path}/nope: does not exist.\n  expected:")
    assert done.stdout == ""


def test_a_run_is_followed_with_the_last_values_only(tmp_path):
    """A long run is read whole, and not kept whole."""
    run = Run(write(tmp_path, [Record(step, 0.0, 0, {"x": step}) for step in range(500)]), keep=8)
    assert len(run.steps) <= 16
    assert run.scalars["x"].values[-1] == 499
    assert not run.refresh()
