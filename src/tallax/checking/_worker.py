# SPDX-License-Identifier: Apache-2.0
"""The process in which `tallax check` runs a user's file: it may hang, exit or crash, and only this process is lost.

Reads a request from the command line, as JSON, and writes lines of JSON to the file descriptor that it names:
`{"at": ...}` as each check begins, `{"cell": ...}` and `{"finding": ...}` as they come, and at last `{"report": ...}`
or `{"error": ...}`.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

from tallax._errors import StatecheckError, compose


def main() -> None:
    """Answers the request in `sys.argv[1]`."""
    request = json.loads(sys.argv[1])
    with os.fdopen(request["answer_to"], "w") as pipe:
        os.dup2(2, 1)  # what the user's code prints goes to stderr: stdout is the report's
        try:
            report = _checked(request, pipe)
        except StatecheckError as error:
            _say(pipe, error=str(error))
        else:
            _say(pipe, report=report.to_dict())


def _checked(request: dict[str, Any], pipe: TextIO) -> Any:
    # Imported here, so that an import that fails or hangs is reported as any other fault.
    import jax

    from tallax.checking._collecting import Collected
    from tallax.checking._exercise import graded
    from tallax.checking._report import Cell, to_plain
    from tallax.checking._statecheck import check_into
    from tallax.checking._targets import found, input_of, loaded, modules_in

    def note(result: Any) -> None:
        _say(pipe, **{"cell" if isinstance(result, Cell) else "finding": to_plain(result)})

    file, name = request["file"], request["name"]
    collected = Collected(name or Path(file).name, on_progress=lambda check: _say(pipe, at=check), on_result=note)

    # A check compiles some sixty programs and runs each a few times: it ends sooner with quick compilation.
    jax.config.update("jax_disable_most_optimizations", True)
    collected.notify("import of the file")
    module = loaded(Path(file))
    if name is None:
        if hasattr(module, "StepCounter") or hasattr(module, "counter_after_n_calls"):
            return graded(module, collected)
        names = modules_in(module)
        raise StatecheckError(
            compose(
                file,
                "name what to check in it.",
                got=f"modules: {', '.join(names) or 'none'}",
                fix=f"tallax check {file}:{(names or ['Name'])[0]}",
            )
        )
    check_into(
        collected,
        found(module, name),
        tuple(input_of(text) for text in request["inputs"]),
        calls=request["calls"],
        call=None if request["call"] is None else found(module, request["call"]),
    )
    return collected.report()


def _say(pipe: TextIO, **message: Any) -> None:
    pipe.write(json.dumps(message) + "\n")
    pipe.flush()


if __name__ == "__main__":
    main()
