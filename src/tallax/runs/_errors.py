# SPDX-License-Identifier: Apache-2.0
"""The root of all exceptions of tallax, and the layout of their messages; `tallax._errors` has the rest of the tree."""

from __future__ import annotations

import functools


@functools.singledispatch
def subject_name(subject: object) -> str:
    """Returns the name of the subject of an error. For Variables and modules, `tallax._errors` registers a look-up."""
    return str(subject)


class TallaxError(Exception):
    """The base of every error that tallax raises on purpose.

    Args:
        subject: A string, which is shown unchanged, or a Variable or module, which `name_of` looks up.
        rule: A sentence that completes "<subject>: ...". If omitted, `subject` is the whole text.
        got: The value found, formatted by `describe`.
        expected: The accepted values, if the rule does not state them.
        fix: Code to write instead.
    """

    def __init__(
        self,
        subject: object,
        rule: str | None = None,
        *,
        got: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ):
        text = subject if rule is None else laid_out(subject_name(subject), rule, got=got, expected=expected, fix=fix)
        # Not by super(): a Flax error would add a link to its documentation, and an OSError has more arguments.
        Exception.__init__(self, text)


class RunError(TallaxError, ValueError):
    """A path is not a run, or the run is damaged."""


class MissingExtraError(TallaxError, ImportError):
    """An optional dependency is not installed."""

    @classmethod
    def of(cls, feature: str, extra: str, missing: str) -> MissingExtraError:
        """Returns the error with the command that installs `extra`."""
        rule = f"needs the package {missing}, which is not installed."
        return cls(feature, rule, fix=f"pip install 'tallax[{extra}]'")


# Tracebacks show these classes under the names by which users import them.
for _error in (TallaxError, RunError, MissingExtraError):
    _error.__module__ = "tallax"


def laid_out(
    name: str, rule: str, *, got: str | None = None, expected: str | None = None, fix: str | None = None
) -> str:
    """Returns the text of an error: subject and rule, then the value, the expected value, and the fix."""
    lines = [f"{name}: {rule}"]
    for label, text in (("got:", got), ("expected:", expected), ("fix:", fix)):
        if text is not None:
            lines.append(f"  {label:<{10 if expected is not None else 5}} {text}")
    return "\n".join(lines)
