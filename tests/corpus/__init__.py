# SPDX-License-Identifier: Apache-2.0
"""Modules that are wrong and modules that are right, to judge `tallax.statecheck` by."""
