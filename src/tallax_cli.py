# SPDX-License-Identifier: Apache-2.0
"""The command line: `tallax count --seed 0 --calls 5`, `tallax check model.py:Model --inputs 'float32[8,4]'`."""

from __future__ import annotations

import sys
from typing import Any


def main() -> None:
    """Runs the command line; without the `cli` extra, says how to install it and exits with 2."""
    try:
        import typer
    except ModuleNotFoundError:
        from tallax._errors import MissingExtraError

        print(MissingExtraError.of("the tallax command", "cli", "typer"), file=sys.stderr)
        raise SystemExit(2) from None

    app = typer.Typer(no_args_is_help=True, add_completion=False, help="Exact, cheap state for Flax NNX models.")

    @app.callback()
    def root() -> None:
        pass

    @app.command()
    def count(
        seed: str = typer.Option("0", help="Any whole number."),
        calls: str = typer.Option("5", help="How often to call the counter: a whole number, not negative."),
    ) -> None:
        """Make a StepCounter from a seed, call it, and print its value beside the number of calls."""
        from tallax._errors import TallaxError
        from tallax.counters import counter_after_n_calls

        try:
            print(counter_after_n_calls(_number(seed), _number(calls)))
        except TallaxError as error:
            print(error, file=sys.stderr)
            raise typer.Exit(2) from None

    @app.command()
    def check(
        target: str = typer.Argument(
            help="FILE:NAME, a module's class or a function that makes one; or the exercise's FILE."
        ),
        inputs: list[str] = typer.Option(
            [], help="What to call it with, once for each: 'float32[8,4]', 'int32[8]<100', batch.npy, a Python literal."
        ),
        call: str = typer.Option(
            None, help="A function of the model and the inputs, in the file, to run in its place."
        ),
        calls: int = typer.Option(3, min=2, help="How often each run calls the model."),
        limit: float = typer.Option(300.0, help="Seconds after which a check that has not ended is given up."),
        json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
        start: bool = typer.Option(False, "--start", help="Write the exercise's starting file instead."),
    ) -> None:
        """Run a module through every transformation, and say what happens to its state.

        Exits with 0 without failures, 1 with some, 2 if it could not be run.
        """
        try:
            from tallax.checking._command import check as run
        except ModuleNotFoundError as error:
            if error.name != "rich":
                raise
            from tallax._errors import MissingExtraError

            print(MissingExtraError.of("tallax check", "cli", "rich"), file=sys.stderr)
            raise typer.Exit(2) from None
        raise typer.Exit(run(target, inputs, call, calls, limit, as_json=json, start=start))

    app()


def _number(text: str) -> Any:
    """Returns the number that the text stands for, integers of any size exactly, or else the text."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
