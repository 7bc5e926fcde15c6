# SPDX-License-Identifier: Apache-2.0
"""The command line: `tallax check model.py:Model --inputs 'float32[8,4]'`, `tallax lint src`, `tallax doctor`.

The commands for source and for runs start without JAX, whose import takes seconds.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import Any


def main() -> None:
    """Runs the command line. If the `cli` extra is needed and missing, prints how to install it, and exits with 2."""
    _run_without_typer(sys.argv[1:])
    try:
        import typer
    except ModuleNotFoundError:
        from tallax.runs import MissingExtraError

        print(MissingExtraError.of("the tallax command", "cli", "typer"), file=sys.stderr)
        raise SystemExit(2) from None
    app = typer.Typer(no_args_is_help=True, help="Exact, cheap state for Flax NNX models.")

    @app.callback()
    def root(version: bool = typer.Option(False, "--version", help="Print the version.")) -> None:
        pass

    for add in (_add_count, _add_check, _add_learn, _add_linter_and_doctor, _add_runs):
        add(app, typer)
    app()


def _run_without_typer(arguments: list[str]) -> None:
    """Runs the commands that start before Typer is imported, and exits."""
    if arguments[:1] == ["lint"]:  # editors run it at every keystroke, perhaps without the extra
        try:
            from tallax.lint._cli import main as lint_main

            raise SystemExit(lint_main(arguments[1:]))
        except KeyboardInterrupt:  # during the imports; `lint_main` itself handles a later one
            raise SystemExit(130) from None
    if arguments[:1] == ["doctor"]:  # it reports missing packages
        from tallax._doctor import main as doctor_main

        raise SystemExit(doctor_main(arguments[1:]))
    if arguments[:1] == ["--version"]:
        from tallax import __version__

        print("tallax", __version__)
        raise SystemExit(0)


def _add_count(app: Any, typer: Any) -> None:
    @app.command()
    def count(
        seed: str = typer.Option("0", help="Any whole number."),
        calls: str = typer.Option("5", help="How often to call the counter: a whole number, not negative."),
    ) -> None:
        """Make a StepCounter from a seed, call it, and print its value next to the number of calls."""
        with _exit_on_errors(typer):
            from tallax.counters import counter_after_n_calls

            print(counter_after_n_calls(_number(seed), _number(calls)))


def _add_check(app: Any, typer: Any) -> None:
    @app.command()
    def check(
        target: str = typer.Argument(
            help="FILE:NAME of a module class or of a function that returns a module; or the FILE of the exercise."
        ),
        inputs: list[str] = typer.Option(
            [], help="One input; repeat for several: 'float32[8,4]', 'int32[8]<100', batch.npy, a Python literal."
        ),
        call: str = typer.Option(
            None, help="A function in the file to call with the model and the inputs, instead of the model."
        ),
        calls: int = typer.Option(3, min=2, help="How often each run calls the model."),
        limit: float = typer.Option(300.0, min=0.0, help="Seconds after which a check, or a run of a job, is stopped."),
        json: bool = typer.Option(False, "--json", help="Print the report as JSON."),
        resume: bool = typer.Option(False, "--resume", help="Run a training job, FILE:JOB, and check how it resumes."),
        steps: int = typer.Option(4, min=1, help="With --resume: the steps of each half."),
        devices: str = typer.Option("", help="With --resume: devices of both halves, or of each: 8, or 8,4."),
        start: bool = typer.Option(False, "--start", help="Write the exercise's starting file instead."),
    ) -> None:
        """Run a module under every transformation, and report the faults of its state; or a job with a kill in it.

        Exits with 0 if nothing failed, 1 if something failed, and 2 if it could not run, or was cut short before a
        failure.
        """
        with _exit_on_errors(typer):
            try:
                from tallax.checking._command import check as run
                from tallax.checking._command import check_resume_of as run_resume
            except ModuleNotFoundError as error:
                if error.name != "rich":
                    raise
                from tallax.runs import MissingExtraError

                raise MissingExtraError.of("tallax check", "cli", "rich") from None
        if resume:
            raise typer.Exit(run_resume(target, steps, devices, limit, as_json=json))
        raise typer.Exit(run(target, inputs, call, calls, limit, as_json=json, start=start))


def _add_learn(app: Any, typer: Any) -> None:
    @app.command()
    def learn(
        folder: str = typer.Argument("tallax-exercises", help="The folder of the exercises; created if missing."),
        check: list[int] = typer.Option([], help="Grade the exercise with this number and exit; repeat for several."),
        limit: float = typer.Option(60.0, min=1.0, help="Seconds after which grading a file is stopped."),
        json: bool = typer.Option(False, "--json", help="Print the grades of --check as JSON."),
    ) -> None:
        """Take a course on state in Flax NNX: exercises in which a wrong program prints the right number.

        On a terminal, an exercise is graded when you save its file. With --check, exits with 0 if the exercises pass,
        1 if one fails, 2 if one cannot be graded.
        """
        with _exit_on_errors(typer):
            from pathlib import Path

            from tallax.learning._learn_command import learn as run

            raise typer.Exit(run(Path(folder), check, limit, as_json=json))


def _add_linter_and_doctor(app: Any, typer: Any) -> None:
    @app.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
    def lint(arguments: list[str] = typer.Argument(None, metavar="PATH...")) -> None:
        """Find mistakes with the state of models in source code; `tallax lint --help` lists the options."""
        from tallax.lint._cli import main as lint_main

        raise typer.Exit(lint_main(arguments or []))

    @app.command(add_help_option=False, context_settings={"ignore_unknown_options": True})
    def doctor(arguments: list[str] = typer.Argument(None, metavar="[--json]")) -> None:
        """Print versions, devices, modes and extras, to paste into a bug report."""
        from tallax._doctor import main as doctor_main

        raise typer.Exit(doctor_main(arguments or []))


def _add_runs(app: Any, typer: Any) -> None:
    @app.command()
    def tail(
        run: str = typer.Argument(help="The folder of a run, or its file."),
        names: list[str] = typer.Option([], help="Names to show; repeat for several patterns: 'gate/*', loss."),
        every: float = typer.Option(1.0, min=0.05, help="Seconds between two updates."),
        once: bool = typer.Option(False, "--once", help="Print the table once and exit."),
        wait: bool = typer.Option(False, "--wait", help="Wait for a run that does not exist yet."),
    ) -> None:
        """Follow a run in the terminal while it is written, until q or Ctrl-C.

        If the output is not a terminal, the table is printed once.
        """
        with _exit_on_errors(typer):
            from tallax.runs._tail import tail as run_tail

            run_tail(run, names, every, once=once, wait=wait)

    @app.command()
    def plot(
        runs: list[str] = typer.Argument(help="The folder of a run, or its file; several are drawn over each other."),
        output: str = typer.Option(
            None, "-o", "--output", help="A file ending in .png, .svg or .pdf; by default plot.png in the run's folder."
        ),
        names: list[str] = typer.Option([], help="Names to draw; repeat for several patterns: 'gate/*', loss."),
    ) -> None:
        """Draw the scalars and the histograms of runs over their steps."""
        with _exit_on_errors(typer):
            from tallax.runs._plot import plot as run_plot

            for path in run_plot(runs, output, names):
                print(path)

    @app.command()
    def show(
        path: str = typer.Argument(metavar="CHECKPOINT_OR_RUN", help="The folder of a checkpoint or a run."),
        names: list[str] = typer.Option([], help="Names to show; repeat for several patterns: 'gate/*', loss."),
        json: bool = typer.Option(False, "--json", help="Print JSON."),
    ) -> None:
        """List each variable and statistic: path, kind, exact value, shape, size, and whether checkpoints keep it."""
        with _exit_on_errors(typer):
            from tallax.runs._show import show as run_show

            def checkpoint(path: str) -> Any:
                from tallax.checkpoints import shown  # imports JAX and Orbax, which runs do not need

                return shown(path)

            run_show(path, names, json_wanted=json, checkpoint=checkpoint)


@contextlib.contextmanager
def _exit_on_errors(typer: Any) -> Iterator[None]:
    """Prints an error of tallax, and exits with 2."""
    from tallax.runs import TallaxError

    try:
        yield
    except TallaxError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def _number(text: str) -> Any:
    """Returns a text as a number, with integers of any size exact; the text itself if it is not a number."""
    for convert in (int, float):
        try:
            return convert(text)
        except ValueError:
            continue
    return text
