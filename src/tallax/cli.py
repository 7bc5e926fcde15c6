# SPDX-License-Identifier: Apache-2.0
"""The command line: `tallax check model.py:Model --inputs 'float32[8,4]'`, `tallax lint src`, `tallax doctor`.

What looks at source and at runs starts without JAX, which takes seconds.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


def main() -> None:
    """Runs the command line; what needs the `cli` extra, and misses it, names it and exits with 2."""
    if sys.argv[1:2] == ["lint"]:  # before typer is looked for: an editor asks at every stroke, and may do without
        from tallax.lint._cli import main as lint_main

        raise SystemExit(lint_main(sys.argv[2:]))
    if sys.argv[1:2] == ["doctor"]:  # likewise: what is missing is what it tells
        from tallax._doctor import main as doctor_main

        raise SystemExit(doctor_main(sys.argv[2:]))
    if sys.argv[1:2] == ["--version"]:
        from tallax import __version__

        print("tallax", __version__)
        return
    try:
        import typer
    except ModuleNotFoundError:
        from tallax._errors import MissingExtraError

        print(MissingExtraError.of("the tallax command", "cli", "typer"), file=sys.stderr)
        raise SystemExit(2) from None

    app = typer.Typer(no_args_is_help=True, help="Exact, cheap state for Flax NNX models.")

    @app.callback()
    def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
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
        limit: float = typer.Option(300.0, min=0.0, help="Seconds after which a check that has not ended is given up."),
        json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
        start: bool = typer.Option(False, "--start", help="Write the exercise's starting file instead."),
    ) -> None:
        """Run a module through every transformation, and say what happens to its state.

        Exits with 0 without failures, 1 with some, 2 if it could not run, or not to its end and nothing failed by then.
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

    @app.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
    def lint(arguments: list[str] = typer.Argument(None, metavar="PATH...")) -> None:
        """Find in source what goes wrong with the state of models; `tallax lint --help` has the options."""
        from tallax.lint._cli import main as lint_main

        raise typer.Exit(lint_main(arguments or []))

    @app.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
    def doctor(arguments: list[str] = typer.Argument(None, metavar="[--json]")) -> None:
        """Print versions, devices, modes and extras: what to paste in a bug report."""
        from tallax._doctor import main as doctor_main

        raise typer.Exit(doctor_main(arguments or []))

    @app.command()
    def tail(
        run: str = typer.Argument(help="The folder of a run, or its file."),
        names: list[str] = typer.Option([], help="Names to show, once for each: 'gate/*', loss."),
        every: float = typer.Option(1.0, min=0.05, help="Seconds between two looks."),
        once: bool = typer.Option(False, "--once", help="Print the table as it is now, and end."),
        wait: bool = typer.Option(False, "--wait", help="Wait for a run that is not there yet."),
    ) -> None:
        """Follow a run in the terminal while it is written, until q or Ctrl-C.

        Where the output is no terminal, it is printed once.
        """
        with _refusing(typer):
            from tallax.runs._tail import tail as run_tail

            run_tail(run, names, every, once=once, wait=wait)

    @app.command()
    def plot(
        runs: list[str] = typer.Argument(help="The folder of a run, or its file; of several, to lay one over another."),
        output: str = typer.Option(
            None, "-o", "--output", help="A file ending in .png, .svg or .pdf; by default plot.png in the run's folder."
        ),
        names: list[str] = typer.Option([], help="Names to draw, once for each: 'gate/*', loss."),
        histograms: str = typer.Option("heatmap", help="heatmap, or ridgeline."),
    ) -> None:
        """Draw the scalars and the histograms of runs over their steps."""
        with _refusing(typer):
            from tallax.runs._plot import plot as run_plot

            for path in run_plot(runs, output, names, histograms):
                print(path)

    @app.command()
    def show(
        path: str = typer.Argument(metavar="CHECKPOINT_OR_RUN", help="The folder of either."),
        names: list[str] = typer.Option([], help="Names to show, once for each: 'gate/*', loss."),
        json: bool = typer.Option(False, "--json", help="Print JSON."),
    ) -> None:
        """List every item: its path, kind, exact value, shape and bytes, and whether checkpoints keep it."""
        with _refusing(typer):
            from tallax.runs._show import show as run_show

            run_show(path, names, json_wanted=json, checkpoint=_checkpoint)

    app()


def _checkpoint(path: str) -> Any:
    """Returns what is to be shown of a checkpoint; imports JAX and Orbax, which runs do without."""
    from tallax.checkpoints import shown

    return shown(path)


@contextlib.contextmanager
def _refusing(typer: Any) -> Iterator[None]:
    """Prints the errors of `tallax.runs`, and exits with 2."""
    from tallax.runs import TallaxError

    try:
        yield
    except TallaxError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def _number(text: str) -> Any:
    """Returns the number that the text stands for, integers of any size exactly, or else the text."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
