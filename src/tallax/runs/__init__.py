# SPDX-License-Identifier: Apache-2.0
"""Reads and shows runs without JAX, so a login node without an accelerator can show them in half a second.

Concepts: a `Record` is one step of a run: scalars and `Bins` by name, and a `StateInfo` for each variable and
statistic that they come from. A `History` sorts records by name into `Series`. A `Run` is the history of a folder.

    Logger -> Record -> sinks.Jsonl -> records.jsonl -> Run (a History) -> tail, plot, show, notebooks

| to change | open |
|---|---|
| the data that every sink gets | `_record` |
| the format on disk | `_jsonl_format` |
| how files are found, followed and read again after a resume | `_run` |
| the names of numbers and sites: their parts, their order, the patterns of `--names` | `_keys` |
| the format of numbers, sizes and durations | `_number_format` |
| the table of the sites of a watch, which `print(watch)` shares | `_site_table` |
| histograms and series as bars of text, and the scale that they share with pictures | `_bars` |
| `tallax tail`, and the table of `sinks.Console` | `_tail` and `_keyboard`, `_live_table` |
| `tallax show` of a run or a checkpoint | `_contents` (the data), `_show` (the terminal) |
| tables in notebooks | `_html`; `tallax._display` adds treescope and needs JAX |
| `tallax plot` | `_plot` (files and pages), `_panels` (grouping and data), `_matplotlib` (drawing) |

Invariants: nothing here imports JAX, Flax or the rest of tallax, which `tests/test_architecture.py` guards. Integers
are exact from the record to the screen, however large, which `tests/test_jsonl.py` and `tests/test_show.py` guard.
"""

from tallax.runs._errors import MissingExtraError as MissingExtraError
from tallax.runs._errors import RunError as RunError
from tallax.runs._errors import TallaxError as TallaxError
from tallax.runs._history import History as History
from tallax.runs._history import Series as Series
from tallax.runs._record import Bins as Bins
from tallax.runs._record import Record as Record
from tallax.runs._record import StateInfo as StateInfo
from tallax.runs._run import Run as Run
