# SPDX-License-Identifier: Apache-2.0
"""The name and the explanation of a rule: the source of `--explain`, of the docs pages and of the tests."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rule:
    """One mistake that the linter knows.

    Attributes:
        code: `TLX001`; never used again for another mistake.
        slug: The same for people, `param-state`.
        title: One line without a full stop: "State kept as nnx.Param".
        why: Markdown, a paragraph or two: what happens, when it is noticed, and how the rule decides.
        bad: A whole example that the rule reports, once.
        good: The same, mended.
        fix: What `--fix` does, in a sentence; empty where it does nothing.
        misses: What the rule leaves alone because it can't be decided from source; empty where there is none.
        since: The first version of Flax that the mistake exists in, "0.12"; empty if it exists in all versions.
    """

    code: str
    slug: str
    title: str
    why: str
    bad: str
    good: str
    fix: str = ""
    misses: str = ""
    since: str = ""
