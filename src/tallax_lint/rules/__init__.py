# SPDX-License-Identifier: Apache-2.0
"""The rules, one file for each family, in the order of their codes."""

from __future__ import annotations

from tallax_lint._check import CHECKS
from tallax_lint._rule import Rule
from tallax_lint.rules import (
    callbacks,
    counters,
    filters,
    lost,
    parameters,
    references,
    replaced,
    sow,
    static,
    sync,
    value,
    weak,
)

RULES: tuple[Rule, ...] = (
    parameters.RULE,
    replaced.RULE,
    sync.RULE,
    counters.NARROW,
    weak.RULE,
    value.RULE,
    counters.PYTHON,
    lost.RULE,
    callbacks.RULE,
    filters.RULE,
    references.RULE,
    sow.RULE,
)

__all__ = ["CHECKS", "RULES", "static"]
