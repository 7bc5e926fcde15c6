# SPDX-License-Identifier: Apache-2.0
"""Writing a record as far as a sink can."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

from tallax.runs import Record

Written = TypeVar("Written")


def encoded(
    record: Record, encode: Callable[[Record], Written], trial: Callable[[Record], object] | None = None
) -> tuple[Written, dict[str, Exception]]:
    """Returns a record as a sink writes it, without the values for which that raises, and these errors by name.

    Args:
        record: the record.
        encode: turns it into something to be written.
        trial: does so with a record of one value, where `encode` remembers what it has encoded.

    Raises:
        Exception: the record itself cannot be encoded, or none of its values can be.
    """
    try:
        return encode(record), {}
    except Exception as error:
        first = error
    errors: dict[str, Exception] = {}
    scalars, histograms = dict(record.scalars), dict(record.histograms)
    for name, part in parts(record):
        try:
            (trial or encode)(part)
        except Exception as error:
            errors[name] = error
            scalars.pop(name, None)
            histograms.pop(name, None)
    if not errors or not (scalars or histograms):
        raise first
    return encode(dataclasses.replace(record, scalars=scalars, histograms=histograms)), errors


def one_by_one(record: Record, write: Callable[[Record], object]) -> dict[str, Exception]:
    """Writes each value of a record by itself, and returns the errors of those that cannot be written, by name.

    Raises:
        Exception: none can be.
    """
    errors: dict[str, Exception] = {}
    names = set()
    for name, part in parts(record):
        names.add(name)
        try:
            write(part)
        except Exception as error:
            errors[name] = error
    if errors and len(errors) == len(names):
        raise next(iter(errors.values()))
    return errors


def parts(record: Record) -> Iterator[tuple[str, Record]]:
    """Yields, by name, records of one value each."""
    for name, value in record.scalars.items():
        yield name, dataclasses.replace(record, scalars={name: value}, histograms={}, state={})
    for name, bins in record.histograms.items():
        yield name, dataclasses.replace(record, scalars={}, histograms={name: bins}, state={})
