# SPDX-License-Identifier: Apache-2.0
"""`python -m tallax.lint PATH...`: the same as `tallax lint PATH...`."""

import sys

from tallax.lint._cli import main

if __name__ == "__main__":
    sys.exit(main())
