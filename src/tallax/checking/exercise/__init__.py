# SPDX-License-Identifier: Apache-2.0
"""The exercise: the file to start from, and a worked solution."""
