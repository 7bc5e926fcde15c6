# SPDX-License-Identifier: Apache-2.0
"""Writes a record without the values that a sink cannot write."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import TypeVar

from tallax.runs import Record

Written = TypeVar("Written")


def encode_or_omit(
    record: Record, encode: Callable[[Record], Written], trial: Callable[[Record], object] | None = None
) -> tuple[Written, dict[str, Exception]]:
    """Returns an encoded record, without the values that cannot be encoded, and the errors of those by name.

    If `encode` has side effects, `trial` encodes records of one value, to find out which raise.

    Raises:
        Exception: The record itself cannot be encoded, or none of its values can be.
    """
    try:
        return encode(record), {}
    except Exception as error:
        first = error
    errors = write_one_by_one(record, trial or encode)
    if not errors:
        raise first
    scalars = {name: value for name, value in record.scalars.items() if name not in errors}
    histograms = {name: bins for name, bins in record.histograms.items() if name not in errors}
    return encode(dataclasses.replace(record, scalars=scalars, histograms=histograms)), errors


def write_one_by_one(record: Record, write: Callable[[Record], object]) -> dict[str, Exception]:
    """Writes each value of a record by itself, and returns the errors of those that cannot be written, by name.

    Raises:
        Exception: None of the values can be written.
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
    """Yields the name of each value, and a record with only this value."""
    for name, value in record.scalars.items():
        yield name, dataclasses.replace(record, scalars={name: value}, histograms={}, state={})
    for name, bins in record.histograms.items():
        yield name, dataclasses.replace(record, scalars={}, histograms={name: bins}, state={})
