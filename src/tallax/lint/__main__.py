# SPDX-License-Identifier: Apache-2.0
"""`python -m tallax.lint PATH...`: the same as `tallax lint PATH...`."""

import sys

if __name__ == "__main__":
    try:
        from tallax.lint._cli import main

        sys.exit(main())
    except KeyboardInterrupt:  # during the imports; `main` itself handles a later one
        sys.exit(130)
