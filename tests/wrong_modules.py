# SPDX-License-Identifier: Apache-2.0
"""Modules that `tallax.statecheck` has to fail, by name; `ARGUABLE` are those where opinions differ."""

from tests.corpus import (
    arguable,
    wrong_attributes,
    wrong_modes,
    wrong_params,
    wrong_python,
    wrong_transforms,
    wrong_widths,
)
from tests.corpus.case import ARGUABLE, WRONG, Wrong

__all__ = ["ARGUABLE", "WRONG", "Wrong"]

# Importing one registers its cases.
FILES = (arguable, wrong_attributes, wrong_modes, wrong_params, wrong_python, wrong_transforms, wrong_widths)
