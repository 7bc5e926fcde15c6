# SPDX-License-Identifier: Apache-2.0
"""Checks by running: `statecheck` for modules, `resumecheck` for training jobs, and the report of both.

`statecheck` runs a module through every transformation, mode and copy, and compares its state with that of plain calls:

    factory --_program--> model --_reference--> plain calls --_matrix, _copies, ...--> cells and findings --> Report

`resumecheck` runs a job in new processes, and compares the state that it returns:

1. `_job_runs` starts each run as a process (`_job_worker`), bounds it in time, and ends it with all that it started.
2. `_job_trace` counts in that process how often each line of the user's files runs, and keeps local variables.
3. `_job_state` turns what the job returns into values by path: NumPy arrays, numbers and text.
4. `_resume_comparison` compares the runs; `_resume_causes` names what happened to a value, from numbers alone.
5. `_resume_remedies` has the rules and what to write instead.

To change | open
--- | ---
the runs, their order and the arguments | `_resumecheck`
what of an object is compared | `_job_state`
the evidence for a rule | `_resume_causes`, with a case in `tests/test_resumecheck.py`
which findings are causes and which consequences | `_resume_comparison`
a check of modules | `_matrix`, `_attribute_checks`, `_copies`, `_counter_widths`, `_usage_warnings`
the command line | `_command`; `_process` and `_worker` for modules, `_targets` for names in files

The invariant: a check blames nothing that is right. `tests/right_modules.py` and the right jobs in
`tests/resume_jobs.py` guard it; `tests/wrong_modules.py` and the faults there guard the other side. No process outlives
a check, which `tests/test_check_command.py` and `tests/test_resumecheck.py` test.
"""

from tallax.checking._report import RULES as RULES
from tallax.checking._report import Cell as Cell
from tallax.checking._report import Finding as Finding
from tallax.checking._report import Outcome as Outcome
from tallax.checking._report import Report as Report
from tallax.checking._resume_remedies import RESUME_RULES as RESUME_RULES
from tallax.checking._resumecheck import resumecheck as resumecheck
from tallax.checking._statecheck import statecheck as statecheck
