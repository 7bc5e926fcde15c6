# SPDX-License-Identifier: Apache-2.0
"""The command line: `tallax count --seed 0 --calls 5`."""

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

    app()


def _number(text: str) -> Any:
    """Returns the number that the text stands for, integers of any size exactly, or else the text."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
