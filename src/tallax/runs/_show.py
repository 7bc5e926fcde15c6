# SPDX-License-Identifier: Apache-2.0
"""`tallax show`: prints the state in a run or a checkpoint."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

try:
    from rich import box
    from rich.console import Console, Group, RenderableType
    from rich.table import Table
    from rich.text import Text
except ModuleNotFoundError:
    from tallax.runs._errors import MissingExtraError

    raise MissingExtraError.of("tallax show", "cli", "rich") from None

from tallax.runs._bars import bars_of
from tallax.runs._contents import Contents, as_json, of_run
from tallax.runs._errors import RunError
from tallax.runs._number_format import number, short, size
from tallax.runs._record import Bins, StateInfo
from tallax.runs._run import FILE, Run, is_run
from tallax.runs._site_table import lines_of

_BARS = 16  # the characters of a histogram
_NARROW = 100  # columns
_WITHOUT_TERMINAL = 120


def show(
    path: str, patterns: Sequence[str], *, json_wanted: bool, checkpoint: Callable[[str], Contents] | None = None
) -> None:
    """Prints each variable and statistic: path, kind, value, shape, size, and whether checkpoints keep it.

    In JSON, integers are exact and nothing is left out.

    Raises:
        RunError: The path is neither, or it is damaged.
    """
    shown = read(path, checkpoint).only(patterns)
    if json_wanted:
        print(json.dumps(as_json(shown), allow_nan=False))
        return
    console = console_on_stdout()
    console.print(rendered(shown, console.width))


def console_on_stdout() -> Console:
    """Returns a console as wide as the terminal; if stdout is not a terminal, of 120 columns or `COLUMNS`."""
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WITHOUT_TERMINAL
    return Console(highlight=False, width=width)


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a checkpoint of Orbax, or a series of them."""
    return any(any(Path(path).glob(f"{below}_*METADATA")) for below in ("", "*/", "*/*/"))


def read(path: str | os.PathLike[str], checkpoint: Callable[[str], Contents] | None = None) -> Contents:
    """Reads a run, or a checkpoint with `checkpoint`, which needs JAX.

    Raises:
        RunError: The path is neither a run nor a checkpoint, or it is damaged.
    """
    if is_run(path):
        return of_run(Run(path, keep=1), str(path))
    if checkpoint is not None and is_checkpoint(path):
        return checkpoint(str(path))
    raise RunError(
        str(path),
        "is neither a run nor a checkpoint." if Path(path).exists() else "does not exist.",
        expected=f"a folder with a file {FILE}, as tallax.sinks.Jsonl writes it, or one that tallax.save wrote",
        fix="name the folder of one run, or of one checkpoint",
    )


def rendered(shown: Contents, width: int) -> RenderableType:
    """Returns the tables for a terminal of this width."""
    parts: list[RenderableType] = [
        Text.assemble((f"{shown.kind} {shown.path}", "bold cyan"), f"  {shown.about}"),
        Text(),
    ]
    state = shown.own_state
    if state:
        parts += [_state_table(state, shown, width), Text()]
    for lines in lines_of(shown.sites, width):
        parts += [Text("\n".join(lines), overflow="fold"), Text()]
    others = _others(shown)
    if others is not None:
        parts += [others, Text()]
    if shown.state:
        kept = sum(info.nbytes for info in shown.state.values() if info.persistent)
        total = sum(info.nbytes for info in shown.state.values())
        count = f"{len(shown.state):,} name{'s' if len(shown.state) != 1 else ''}"
        parts.append(Text(f"{count}, {size(total)}; {size(kept)} of it in checkpoints", "dim"))
    return Group(*parts)


def _state_table(state: Mapping[str, StateInfo], shown: Contents, width: int) -> Table:
    """Returns the table of the state. In a narrow terminal, one column has kind, shape and size."""
    body = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    body.add_column("name", overflow="fold", min_width=min(16, width // 4))
    narrow = width < _NARROW
    if narrow:
        body.add_column("type", no_wrap=True)
        body.add_column("value", overflow="fold", ratio=1)
    else:
        body.add_column("kind", no_wrap=True)
        body.add_column("value", overflow="fold", ratio=1)
        body.add_column("shape", no_wrap=True)
        body.add_column("size", justify="right", no_wrap=True)
        body.add_column("kept", no_wrap=True)
    for name, info in state.items():
        kind, kept = Text(info.kind, "cyan"), Text("yes", "green") if info.persistent else Text("no", "yellow")
        shape = Text(info.type_text, "dim")
        value = _value(name, shown, _BARS if narrow else 2 * _BARS)
        if narrow:
            said = Text("kept", "green") if info.persistent else Text("not kept", "yellow")
            what = Text("\n").join([kind, shape, Text.assemble(size(info.nbytes), ", ", said)])
            body.add_row(Text(name), what, value)
        else:
            body.add_row(Text(name), kind, value, shape, size(info.nbytes), kept)
    return body


def _value(name: str, shown: Contents, bars: int) -> Text:
    text = Text()
    for field, part in shown.parts(name):
        text.append("  " if text else "").append(f"{field}=" if field else "", "dim")
        if isinstance(part, Bins):
            text.append(bars_of(part, bars), "magenta").append(f" {number(part.total)}")
        else:
            text.append(part, "" if field else "bold")
    if name in shown.places:
        text.append(f"  (at step {shown.places[name]:,})", "dim")
    return text if text else Text("-", "dim")


def _others(shown: Contents) -> Table | None:
    if not shown.others:
        return None
    body = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    body.add_column("scalar", overflow="fold")
    body.add_column("value", justify="right", overflow="fold")
    body.add_column("", style="dim")
    for name, value in shown.others.items():
        about = f"at step {shown.places[name]:,}" if name in shown.places else ""
        if isinstance(value, Bins):
            body.add_row(Text(name), bars_of(value, _BARS), about or f"{short(value.total)} values")
        else:
            body.add_row(Text(name), number(value), about)
    return body
