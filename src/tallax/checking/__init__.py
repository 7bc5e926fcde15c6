# SPDX-License-Identifier: Apache-2.0
"""`statecheck` and its report: does a module keep its state under every transformation, mode and copy?

A check compares runs. The measure is plain Python: a few calls of a new model without compilation. Data moves through
the files in this order:

1. Program: `_program` turns the arguments of `statecheck` into a factory, a call and one batch of arrays per call.
2. Reference run: `_reference` runs the program without compilation. `_snapshot` copies every value of the model to the
   host, by path, before and after each call.
3. Transformations: `_transformations` lists every way to run the program and the modes of each.
   `_split_transformations` has the forms for JAX's own transformations, which run on the state of a split model.
4. Comparison: each check is a generator `(program, reference) -> cells and findings`, and `_statecheck` runs them in
   order; they are in the files named `_*_checks`. `_watched_writes` records writes that no snapshot shows.
5. Diagnosis: `_diagnosis` turns a difference or an error into a `Finding`: the rule, the remedy, and with the help of
   `_source_lines` the line of source.
6. Report: `_check_results` collects the findings and drops those that another finding explains. `_report` prints the
   report as text, `_rich_report` in colour.

    statecheck ─ program ─ reference run ─┬─ check ─ transformation ─ snapshot ─ difference ─ diagnosis ─┬─ report
                                          └─ check ...                                                  ─┘

`tallax check` adds `_command` (the terminal), `_process` (a process that may hang or crash), `_command_inputs` (the
text after `--inputs`), `_exercise` (the grader) and `_progress` (the line on stderr).

To add a transformation, add a line to `TRANSFORMATIONS`. To add a check, write the generator and add it to `_CHECKS` in
`_statecheck`. To add a rule, add it to `RULES` in `_report` and to a tier in `_check_results`, and add a module that
breaks it to `tests/corpus`. To reword a remedy, edit `_FIXES` in `_diagnosis`.

Two invariants must not break. A right module never fails: `tests/test_statecheck.py` runs every module of
`tests/corpus/right_*.py`. Every wrong module fails by its own rule, at its own path: the same test runs
`tests/corpus/wrong_*.py`. Both depend on one habit: each run gets a model that the factory made for it.
"""

from tallax.checking._report import RULES as RULES
from tallax.checking._report import Cell as Cell
from tallax.checking._report import Finding as Finding
from tallax.checking._report import Outcome as Outcome
from tallax.checking._report import Report as Report
from tallax.checking._statecheck import statecheck as statecheck
