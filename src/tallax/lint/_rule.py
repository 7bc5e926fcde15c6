# SPDX-License-Identifier: Apache-2.0
"""The name and the explanation of a rule: the source of `--explain`, of the docs pages and of the tests."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Rule:
    """One mistake that the linter knows.

    Attributes:
        code: `TLX001`; never used again for another mistake.
        slug: A readable name, `param-state`.
        title: One line without a full stop: "State kept as nnx.Param".
        reports: Markdown: the code that the rule reports, and similar code that it does not report.
        why: Markdown: the effect of the mistake, and the remedy.
        bad: A whole example that the rule reports, once.
        good: The same example without the mistake.
        fix: Markdown: the edits of `--fix`; empty if it makes none.
        limits: Markdown: mistakes of this kind that source alone does not show; empty if source shows them all.
        since: The first version of Flax that the mistake exists in, "0.12"; empty if it exists in all versions.
    """

    code: str
    slug: str
    title: str
    reports: str
    why: str
    bad: str
    good: str
    fix: str = ""
    limits: str = ""
    since: str = ""
