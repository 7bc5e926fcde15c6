# SPDX-License-Identifier: Apache-2.0
"""The exercises, a folder for each; see `tallax.learning`."""
