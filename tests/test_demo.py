# SPDX-License-Identifier: Apache-2.0
"""`make demo` is the first thing that anybody runs: it works, it can be stopped, and it says all it promises."""

from __future__ import annotations

import io
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import tallax

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "examples" / "digits_moe.py"
ITEMS = {
    "step": "StepCounter",
    "experts.temperature": "ScheduledValue",
    "experts.gate_logits": "Histogram",
    "experts.expert_tokens": "Counter",
    "experts.routing_bias": "Buffer",
    "second_look.active": "Rate",
    "second_look.overruled": "Rate",
    "optimizer": "ClipCounts",
}
PLOTS = ("temperature", "learning_rate", "clipping", "expert_load", "gate_logits")

pytestmark = pytest.mark.slow


def start(*arguments: object, **environment: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "error", str(DEMO), *map(str, arguments)]
    # CI runs `make demo` as users do; here most of the time would go into programs that run for two epochs.
    variables = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", **environment}
    variables["PYTHONIOENCODING"] = "utf-8"
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes], seconds: float) -> str:
    """Returns what it prints from now on, without colors; ends it when the time is over."""
    try:
        output = process.communicate(timeout=seconds)[0]
    finally:
        process.kill()
        process.wait()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.decode())


def wait_for(process: subprocess.Popen[bytes], text: bytes, seconds: float) -> None:
    """Reads the output until `text` has come."""
    assert process.stdout is not None
    end, seen = time.monotonic() + seconds, b""
    while text not in seen:
        ready, _, _ = select.select([process.stdout], [], [], max(0.0, end - time.monotonic()))
        chunk = os.read(process.stdout.fileno(), 65_536) if ready else b""
        if not chunk:
            process.kill()
            pytest.fail(f"{text!r} did not come within {seconds} s:\n{(seen + process.communicate()[0]).decode()}")
        seen += chunk


def assert_table_is_whole(output: str) -> None:
    for path, kind in ITEMS.items():
        assert re.search(rf"│ {re.escape(path)} +│ {kind} +│ \S", output), f"{path} is not in the table:\n{output}"


def test_a_short_run_shows_all_state_and_draws_every_plot(tmp_path):
    """Two epochs end with code 0, a table of all state, exact counts in it, and plots in the folder that is named."""
    process = start("--epochs", 2, "--runs", tmp_path)
    output = finish(process, 180)
    assert process.returncode == 0, output
    assert_table_is_whole(output)
    images = 2 * 22 * 64
    assert re.search(r"│ step +│ StepCounter +│ 44 ", output)
    assert re.search(rf"│ second_look.active +│ Rate +│ [\d,]+ of {images:,} ", output)
    assert re.search(r"│ optimizer +│ ClipCounts +│ [\d,]+ of 44 ", output)
    (folder,) = tmp_path.iterdir()
    for command in ("tallax tail", "tallax plot", "tallax show"):
        assert f"{command} {folder}  #" in output
    assert f"tensorboard --logdir {tmp_path}  #" in output
    assert {path.name for path in folder.glob("*.png")} == {f"{plot}.png" for plot in PLOTS}
    run = tallax.Run(folder)
    assert run.steps == [1, 10, 20, 22, 30, 40, 44]  # the ends of the epochs among them
    assert run.scalars["step/step"].values[-1] == 40
    assert run.scalars["test_accuracy"].steps == [22, 44]
    assert sum(run.histograms["experts/expert_tokens"].values[-1].counts.tolist()) == 40 * 64 * 16 * 2
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    for plot in PLOTS:
        content = (folder / f"{plot}.png").read_bytes()
        assert content.startswith(b"\x89PNG")
        assert len(content) > 10_000, f"{plot}.png is nearly empty"


@pytest.mark.thorough
def test_a_finished_run_shows_its_table_again(tmp_path):
    """The same command once more shows the same table, says that all is done, and trains nothing."""
    printed = []
    for _ in range(2):
        process = start("--epochs", 1, "--runs", tmp_path, "--no-plots")
        printed.append(finish(process, 180))
        assert process.returncode == 0, printed[-1]
    assert "This run is finished: make demo FRESH=1 starts again." in printed[1]
    first, second = ([line for line in output.splitlines() if "│" in line] for output in printed)
    assert first == second
    assert len(first) >= len(ITEMS)


@pytest.mark.thorough
def test_ctrl_c_ends_it_with_the_table_so_far(tmp_path):
    """SIGINT in the middle of training ends it with code 130, where it stopped, and the table, without a traceback."""
    # Made to take the pipe for a terminal, rich shows the progress bar while it works.
    process = start("--epochs", 10_000, "--runs", tmp_path, FORCE_COLOR="1", TERM="xterm")
    wait_for(process, b"epoch 1: ", 120)
    process.send_signal(signal.SIGINT)
    output = finish(process, 120)
    assert process.returncode == 130, output
    assert "Traceback" not in output
    stopped = re.search(r"Stopped after step (\d+) of 220000, in epoch (\d+)\.", output)
    assert stopped, output
    step, epoch = map(int, stopped.groups())
    assert step >= 22
    assert epoch == step // 22 + 1
    assert re.search(rf"│ step +│ StepCounter +│ {step:,} ", output)
    assert_table_is_whole(output)
    assert "The next run goes on at the beginning of that epoch." in output
    (folder,) = tmp_path.iterdir()
    assert tallax.Run(folder).steps[-1] == max(step // 10 * 10, step // 22 * 22)  # what was taken is written


def test_ctrl_c_while_the_libraries_load_ends_it_at_once(tmp_path):
    """SIGINT before training has begun ends it with code 130 and one line, not with the traceback of an import."""
    process = start("--runs", tmp_path)
    time.sleep(1.0)
    process.send_signal(signal.SIGINT)
    output = finish(process, 60)
    assert process.returncode == 130, output
    assert output.strip() == "Stopped before training began."


@pytest.fixture
def standard_promotion():
    """The example uses optax and Flax layers, which mix dtypes and ranks."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.mark.thorough
@pytest.mark.usefixtures("standard_promotion")
def test_the_step_is_compiled_once_and_every_token_is_counted(monkeypatch, tmp_path):
    """Over 3 epochs the forward pass is traced twice, for training and for evaluation, and every token is counted."""
    monkeypatch.syspath_prepend(str(DEMO.parent))
    import digits_moe
    import optax
    from flax import nnx
    from rich.console import Console

    traces = []
    forward = digits_moe.SecondLook.__call__
    monkeypatch.setattr(digits_moe.SecondLook, "__call__", lambda *args: traces.append(1) or forward(*args))
    model = digits_moe.DigitsMoE(optax.linear_schedule(5.0, 1.0, 33), rngs=nnx.Rngs(1))
    optimizer = digits_moe.make_optimizer(model, 66)
    with tallax.Checkpoints(tmp_path) as checkpoints:
        history = digits_moe.train(
            model,
            optimizer,
            digits_moe.load_data(),
            epochs=3,
            shuffle=np.random.default_rng(1),
            interrupt=digits_moe.Interrupt(),
            console=Console(file=io.StringIO()),
            log=tallax.Logger(),
            checkpoints=checkpoints,
            history=digits_moe.History(),
        )
    assert len(traces) == 2
    assert len(history.steps) == int(model.step.step) == 66
    gate = model.experts.gate_logits.compute()
    outside = gate.underflow + gate.overflow + gate.nan + gate.posinf + gate.neginf
    assert gate.counts.sum() + outside == 66 * 64 * 16 * digits_moe.EXPERTS
    assert np.asarray(model.experts.expert_tokens).sum() == 66 * 64 * 16 * digits_moe.TOP_K
    assert history.accuracies[-1] > history.accuracies[0] > 0.2
