# SPDX-License-Identifier: Apache-2.0
"""Formats numbers, sizes, durations and long names for people."""

from __future__ import annotations

import math

_DIGITS = 26  # characters of an integer with its commas, so that 2**64 - 1 is shown in full


def number(value: int | float) -> str:
    """Returns an integer in full, with commas, and a float to five digits. Integers beyond 64 bits have five too.

    >>> number(1234567), number(0.123456789), number(float("nan"))
    ('1,234,567', '0.12346', 'NaN')
    """
    if isinstance(value, int):
        text = f"{value:,}"
        if len(text) <= _DIGITS + (value < 0):
            return text
        digits = str(abs(value))
        return f"{'-' if value < 0 else ''}{digits[0]}.{digits[1:5]}e+{len(digits) - 1}"
    if math.isnan(value):
        return "NaN"
    return f"{value:.5g}"


def short(value: float) -> str:
    """Returns a number to three digits, with a letter for thousands and more.

    >>> short(1234567), short(12.345), short(0.00123456), short(12345)
    ('1.23M', '12.3', '0.00123', '12.3k')
    """
    size = abs(value)
    for unit, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if unit <= size < 1e15:
            return f"{value / unit:.3g}{letter}"
    return f"{value:.3g}"


def change(before: int | float, after: int | float, steps: int) -> str:
    """Returns the change of a number: per step if it is an integer that grew, otherwise the difference.

    >>> change(100, 1380, 10), change(7, 4, 10), change(0.5, 0.25, 10), change(3, 3, 10)
    ('+128/step', '-3', '-0.25', '=')
    """
    if before == after or (before != before and after != after):
        return "="
    if isinstance(before, int) and isinstance(after, int):
        grown = after - before
        if grown < 0 or steps <= 0:
            return f"{'+' if grown > 0 else '-'}{_compact(abs(grown))}"
        if grown % steps == 0:
            return f"+{_compact(grown // steps)}/step"
        return f"+{short(float(grown) / steps)}/step" if grown.bit_length() < 1000 else "+"
    try:
        grown = float(after) - float(before)
    except OverflowError:
        return ""
    return f"{grown:+.3g}" if math.isfinite(grown) else ""


def _compact(value: int) -> str:
    text = f"{value:,}"
    return text if len(text) <= 7 else short(float(value)) if value.bit_length() < 1000 else number(value)


def size(nbytes: int) -> str:
    """Returns a number of bytes in a suitable unit.

    >>> size(8), size(72_704), size(3 * 2**30)
    ('8 B', '71 KiB', '3 GiB')
    """
    for power, unit in ((3, "GiB"), (2, "MiB"), (1, "KiB")):
        if nbytes >= 1024**power:
            return f"{nbytes / 1024**power:.3g} {unit}"
    return f"{nbytes} B"


def ago(seconds: float) -> str:
    """Returns a duration in one or two units.

    >>> ago(0.3), ago(75), ago(7300), ago(200_000)
    ('0 s', '1 min 15 s', '2 h 1 min', '2 d 7 h')
    """
    left = max(0, int(seconds))
    units = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))
    for k, (unit, length) in enumerate(units):
        if left >= length or unit == "s":
            text = f"{left // length} {unit}"
            if k + 1 < len(units) and left % length >= units[k + 1][1]:
                text += f" {left % length // units[k + 1][1]} {units[k + 1][0]}"
            return text
    raise AssertionError


def cut(name: str, width: int) -> str:
    """Returns a name, without its first characters if it is too long, because its last parts are the most specific."""
    return name if len(name) <= width else "…" + name[len(name) - width + 1 :]
