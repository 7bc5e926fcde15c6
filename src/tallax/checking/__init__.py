# SPDX-License-Identifier: Apache-2.0
"""`statecheck` and its report: what every transformation, mode and copy does to the state of anybody's module."""

from tallax.checking._report import RULES as RULES
from tallax.checking._report import Cell as Cell
from tallax.checking._report import Finding as Finding
from tallax.checking._report import Outcome as Outcome
from tallax.checking._report import Report as Report
from tallax.checking._resume_remedies import RESUME_RULES as RESUME_RULES
from tallax.checking._resumecheck import resumecheck as resumecheck
from tallax.checking._statecheck import statecheck as statecheck
