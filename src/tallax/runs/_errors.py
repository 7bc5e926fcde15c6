# SPDX-License-Identifier: Apache-2.0
"""The root of all exceptions of tallax, and the layout of their messages; `tallax._errors` has the rest of the tree."""

from __future__ import annotations


class TallaxError(Exception):
    """The base of every error that tallax raises on purpose."""


class RunError(TallaxError, ValueError):
    """What should be a run on disk is none, or has been damaged."""


class MissingExtraError(TallaxError, ImportError):
    """An optional dependency is not installed."""

    @classmethod
    def of(cls, feature: str, extra: str, missing: str) -> MissingExtraError:
        """Returns the error that names the install line of `extra`."""
        return cls(
            laid_out(
                feature,
                f"needs the package {missing}, which is not installed.",
                fix=f"pip install 'tallax[{extra}]'",
            )
        )


# Users meet these in tracebacks by the name under which they import them.
for _error in (TallaxError, RunError, MissingExtraError):
    _error.__module__ = "tallax"


def laid_out(name: str, rule: str, *, got: str | None = None, expected: str | None = None, fix: str) -> str:
    """Returns the text of an error: whom it is about and the rule, then what came, what was expected, and the remedy.

    Args:
        name: of the item, file or argument.
        rule: a sentence that completes "<name>: ...".
        got: what came.
        expected: what would have been taken, where the rule does not say it already.
        fix: what to write instead.
    """
    lines = [f"{name}: {rule}"]
    for label, text in (("got:", got), ("expected:", expected), ("fix:", fix)):
        if text is not None:
            lines.append(f"  {label:<{10 if expected is not None else 5}} {text}")
    return "\n".join(lines)
