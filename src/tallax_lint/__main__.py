# SPDX-License-Identifier: Apache-2.0
"""`python -m tallax_lint PATH...`: the same as `tallax lint PATH...`."""

import sys

from tallax_lint._cli import main

if __name__ == "__main__":
    sys.exit(main())
