# SPDX-License-Identifier: Apache-2.0
"""The exercise: the file to start from. The solution is that of the course, in `tallax.learning`."""
