# SPDX-License-Identifier: Apache-2.0
"""The root of all exceptions of tallax, and the layout of their messages; `tallax._errors` has the rest of the tree."""

from __future__ import annotations


class TallaxError(Exception):
    """The base of every error that tallax raises on purpose."""


class RunError(TallaxError, ValueError):
    """A path is not a run, or the run is damaged."""


class MissingExtraError(TallaxError, ImportError):
    """An optional dependency is not installed."""

    @classmethod
    def of(cls, feature: str, extra: str, missing: str) -> MissingExtraError:
        """Returns the error with the command that installs `extra`."""
        return cls(
            laid_out(
                feature,
                f"needs the package {missing}, which is not installed.",
                fix=f"pip install 'tallax[{extra}]'",
            )
        )


# Tracebacks show these classes under the names by which users import them.
for _error in (TallaxError, RunError, MissingExtraError):
    _error.__module__ = "tallax"


def laid_out(name: str, rule: str, *, got: str | None = None, expected: str | None = None, fix: str) -> str:
    """Returns the text of an error: subject and rule, then the value, the expected value, and the fix."""
    lines = [f"{name}: {rule}"]
    for label, text in (("got:", got), ("expected:", expected), ("fix:", fix)):
        if text is not None:
            lines.append(f"  {label:<{10 if expected is not None else 5}} {text}")
    return "\n".join(lines)
