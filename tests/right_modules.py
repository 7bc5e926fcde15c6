# SPDX-License-Identifier: Apache-2.0
"""Modules that `tallax.statecheck` must not fail, by name."""

from tests.corpus import right_flax, right_models, right_state, right_training
from tests.corpus.case import RIGHT, Right

__all__ = ["RIGHT", "Right"]

# Importing one registers its cases.
FILES = (right_flax, right_models, right_state, right_training)
