# SPDX-License-Identifier: Apache-2.0
"""`python -m benchmarks.scale [--devices N ...] [--output FOLDER]`: the collectives that tallax adds, by mesh.

A step is compiled with and without state, on meshes of forced host devices, and not run. The table is the difference:
collectives and bytes for one step, and for one reading of the state. A model of these figures, `predicted`, has to
equal each of the compiled programs, and is then evaluated for more devices than a compiler takes here.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import unittest.mock
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks._scale_model import BINS, Network, predicted, predicted_reading
from benchmarks._scale_programs import LAYOUTS, STATES, WATCH, WAYS, Sent, added, reading

FEW = ("counter", "histogram", "moments")  # on all layouts; the others only where they differ, on one
SMALL = 8  # devices, up to which all cases are compiled
SECONDS = 1800  # for the programs of one number of devices
MANY = (1_000, 10_000)  # devices, by the model


def cases(devices: int) -> list[tuple[str, str, str, int]]:
    """Returns the layouts, states, ways and numbers of states to compile: all of them on a few devices."""
    found = [("data-parallel", "counter", way, 10) for way in WAYS]
    for name, layout in LAYOUTS.items():
        is_first = name == "data-parallel"
        states = FEW[:1] if devices > SMALL and not is_first else FEW if devices > SMALL or not is_first else STATES
        found += [(name, state, way, 1) for way in (WAYS[1:] if layout.is_mapped else WAYS) for state in states]
        found += [(name, WATCH, way, 1) for way in (WAYS[1:] if layout.is_mapped else WAYS[:1])]
    return found


def accelerators_form(*args: Any, default: Callable[..., Any], **_: Any) -> Any:
    """Stands in for `jax.lax.platform_dependent`: on forced host devices, statistics take the form of accelerators."""
    return default(*args)


def compiled(devices: int) -> dict[str, list[dict[str, Any]]]:
    """Returns the figures of all programs for a number of devices, and those of the model."""
    with unittest.mock.patch("jax.lax.platform_dependent", accelerators_form):
        steps = [_step(*case, devices) for case in cases(devices)]
        ways = [(state, way) for state in (*FEW, WATCH) for way in ("jit", "per-replica")]
        return {"steps": steps, "readings": [_reading(state, way, devices) for state, way in ways]}


def _step(name: str, state: str, way: str, count: int, devices: int) -> dict[str, Any]:
    print(f"{devices} devices: {name}, {count} {state}, {way}", file=sys.stderr, flush=True)
    found = added(LAYOUTS[name], state, way, devices, count)
    model = predicted(LAYOUTS[name], state, way, devices, count)
    agrees = (found.payload, found.payload_in_branch) == (model.payload, model.payload_in_branch)
    agrees = agrees and found.collectives <= model.collectives and found.in_branch <= model.in_branch
    key = {"layout": name, "state": state, "way": way, "devices": devices, "count": count}
    return {**key, **_row(found), "model": _row(model), "agrees": agrees}


def _reading(state: str, way: str, devices: int) -> dict[str, Any]:
    # Only inside `shard_map` a watch has per-replica state, and so the state of one device.
    whole = "shard_map" if state == WATCH and way == "per-replica" else "jit"
    layout = LAYOUTS["data-parallel, shard_map" if whole == "shard_map" else "data-parallel"]
    tensors = 1 if state != WATCH else 2 if whole == "shard_map" else 15  # of `Stage`, and of `Perceptron`
    found, to_host = reading(layout, state, way, devices)
    size = reading(layout, state, whole, devices)[1] if way == "per-replica" else to_host
    figures = {"size": size, "collectives": found.collectives, "payload": found.payload, "to_host": to_host}
    agrees = not any(number % tensors for number in figures.values())
    figures = {name: number // tensors for name, number in figures.items()}
    payload, copied = predicted_reading(state, way, devices, figures["size"])
    agrees = agrees and (figures["payload"], figures["to_host"]) == (payload, copied)
    key = {"state": state, "way": way, "devices": devices}
    return {**key, **figures, "model": {"payload": payload, "to_host": copied}, "agrees": agrees}


def _row(found: Sent) -> dict[str, int]:
    return dataclasses.asdict(found)


def modelled(devices: int, network: Network) -> dict[str, list[dict[str, Any]]]:
    """Returns the model's figures for a number of devices that nothing was compiled for."""
    steps, readings = [], []
    for name, state, way, count in cases(SMALL):
        model = predicted(LAYOUTS[name], state, way, devices, count)
        # A watch under `jit` sums only along the axis that splits a tensor.
        along = LAYOUTS[name].parts if (state, way) == (WATCH, "jit") else devices
        seconds = network.seconds(model.collectives, model.payload, along)
        key = {"layout": name, "state": state, "way": way, "devices": devices, "count": count}
        steps.append({**key, **_row(model), "seconds": seconds})
    for state, size in (("counter", 8), ("histogram", 8 * (BINS + 5)), ("moments", 52), (WATCH, 0)):
        for way in ("jit", "per-replica"):
            payload, to_host = predicted_reading(state, way, devices, size)
            seconds = network.seconds(int(payload > 0), payload, devices)
            readings.append(
                {
                    "state": state,
                    "way": way,
                    "devices": devices,
                    "payload": payload,
                    "to_host": to_host,
                    "seconds": seconds,
                }
            )
    return {"steps": steps, "readings": readings}


def show(record: dict[str, Any]) -> None:
    """Prints the figures as tables."""
    for kind in ("compiled", "modelled"):
        for row in record[kind]["steps"]:
            name = f"{row['layout']}, {row['count']} {row['state']}, {row['way']}"
            branch = f" (+{row['in_branch']}: {row['payload_in_branch']} B in a branch)" if row["in_branch"] else ""
            sent = f"{row['collectives']:3} {row['payload']:9} B{branch}"
            print(f"{row['devices']:6} {name:55} {sent}  {_verdict(row)}")
        for row in record[kind]["readings"]:
            sent = f"{row['payload']:9} B, {row['to_host']:9} B to the host"
            print(f"{row['devices']:6} reading {row['state']}, {row['way']:12} {sent}  {_verdict(row)}")


def _verdict(row: dict[str, Any]) -> str:
    if "seconds" in row:
        return f"{row['seconds'] * 1e6:.0f} us"
    return "as modelled" if row["agrees"] else "NOT AS MODELLED"


def main(arguments: list[str] | None = None) -> int:
    """Compiles in one process for each number of devices; returns 1 if a program is not as the model predicts."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scale", description="Count the collectives that tallax adds."
    )
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument(
        "--output", type=Path, default=_report.RESULTS, metavar="FOLDER", help="where the JSON file goes"
    )
    parser.add_argument("--quick", action="store_true", help="8 devices only")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.here:
        print(json.dumps(compiled(*options.devices)))
        return 0
    found: dict[str, list[Any]] = {"steps": [], "readings": []}
    for devices in [8] if options.quick else options.devices:
        for key, rows in _in_process(devices).items():
            found[key] += rows
    network = Network()
    guessed: dict[str, list[Any]] = {"steps": [], "readings": []}
    for devices in MANY:
        for key, rows in modelled(devices, network).items():
            guessed[key] += rows
    record = {**_report.heading("scale", "collectives that tallax adds"), "network": dataclasses.asdict(network)}
    record |= {"compiled": found, "modelled": guessed}
    show(record)
    _report.write_record(options.output, record)
    return int(not all(row["agrees"] for rows in found.values() for row in rows))


def _in_process(devices: int) -> dict[str, list[dict[str, Any]]]:
    """Compiles in a process with so many devices."""
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-m", "benchmarks.scale", "--here", "--devices", str(devices)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, timeout=SECONDS, check=True)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    sys.exit(main())
