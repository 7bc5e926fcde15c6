# SPDX-License-Identifier: Apache-2.0
"""`python -m tallax ...`: the `tallax` command, of this Python and wherever PATH points."""

from tallax.cli import main

if __name__ == "__main__":
    main()
