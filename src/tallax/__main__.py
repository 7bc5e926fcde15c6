# SPDX-License-Identifier: Apache-2.0
"""Runs the `tallax` command as `python -m tallax ...`, with this Python and independent of PATH."""

from tallax.cli import main

if __name__ == "__main__":
    main()
