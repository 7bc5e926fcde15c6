# SPDX-License-Identifier: Apache-2.0
"""Checks by running: `statecheck` for modules, `resumecheck` for training jobs, and the report of both.

Each compares runs. `statecheck` runs a module under every transformation, mode and copy, and compares its state with
that of plain calls of a new model. Data moves through the files in this order:

1. Program: `_program` turns the arguments of `statecheck` into a factory, a call and one batch of arrays per call.
2. Reference run: `_program` runs it without compilation. `_snapshot` copies every value of the model to the host, by
   path, before and after each call.
3. Transformations: `_transformations` lists every way to run the program and the modes of each.
   `_split_transformations` has the forms for JAX's own transformations, which run on the state of a split model.
   `_uncompiled_runs` traces most of these runs; if that raises, they are compiled. `_evaluation` evaluates the traces
   without XLA, in part with `_numpy_operations`. `_model_copies` makes their models, if copies are as good as the
   factory's.
4. Comparison: each check is a generator `(program, reference) -> cells and findings`, and `_statecheck` runs them in
   order; they are in the files named `_*_checks`. `_watched_writes` records writes that no snapshot shows.
5. Diagnosis: `_diagnosis` turns a difference or an error into a `Finding`: the rule, the remedy, and with the help of
   `_source_lines` the line of source.
6. Report: `_check_results` collects the findings and drops those that another finding explains. `_report` prints the
   report as text and in colour.

`resumecheck` runs a job in new processes, and compares the state that it returns:

1. Plan: `_resumecheck` lists the runs, one `Run` each, and yields a row for each that has ended.
2. Run: `_job_runs` starts each run as a process, bounds it in time, and returns the same `Run` with its results.
3. Record: in that process `_job_worker` calls the job, counts how often each line of the user's files runs, and keeps
   local variables. `_job_state` turns the returned objects into values by path (`_job_values`): NumPy arrays, numbers
   and text.
4. Compare: `_resume_comparison` finds the values that differ, and gathers the values of a path in all runs.
5. Explain: `_resume_causes` makes a finding of them, from numbers alone, and has the rules and remedies.

`tallax check` adds `_command` (the terminal), `_file_check` (both ends of the process that checks a file),
`_command_inputs` (the text after `--inputs`), `_exercise` (the grader, whose measurements `tallax learn` uses too) and
`_progress` (the line on stderr). All processes for the user's code are a `Child` of `tallax._child_process`.

To add a transformation, add a line to `TRANSFORMATIONS`. To add a check, write the generator and add it to `_CHECKS` in
`_statecheck`. To add a rule, add it to `RULES` in `_report` and to a tier in `_check_results`, and add a module that
breaks it to `tests/corpus`. To reword a remedy, edit `_FIXES` in `_diagnosis`. For the evidence behind a rule of
`resumecheck`, open `_resume_causes`, and add a case to `tests/test_resumecheck.py`.

Two invariants must not break. A right module or job never fails: `tests/corpus/right_*.py` and the right jobs in
`tests/resume_jobs.py` are run. Every wrong one fails by its own rule, at its own path: the same tests run the wrong
ones. Both depend on one habit: each run gets a new model, made by the factory or copied with nothing shared.
"""

from tallax.checking._report import RULES as RULES
from tallax.checking._report import Cell as Cell
from tallax.checking._report import Finding as Finding
from tallax.checking._report import Outcome as Outcome
from tallax.checking._report import Report as Report
from tallax.checking._resume_causes import RESUME_RULES as RESUME_RULES
from tallax.checking._resumecheck import resumecheck as resumecheck
from tallax.checking._statecheck import statecheck as statecheck
