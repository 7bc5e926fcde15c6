# SPDX-License-Identifier: Apache-2.0
"""The TensorBoard sink, read back by TensorBoard itself: its EventAccumulator, and its page in a browser."""

import io
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tallax import sinks
from tallax.sinks import Bins, Record

# TensorBoard, which only reads here, has deprecation warnings of its own.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard"),
    pytest.mark.filterwarnings("ignore::UserWarning:tensorboard"),
]
ARTIFACTS = pathlib.Path(os.environ.get("TALLAX_ARTIFACTS", "build/artifacts"))
CHROMIUM = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"


def read(folder):
    """Returns TensorBoard's own reader, with all there is in it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    everything = {"scalars": 0, "tensors": 0, "histograms": 0}
    return EventAccumulator(str(folder), size_guidance=everything).Reload()


def exact(reader, tag):
    from tensorboard.util.tensor_util import make_ndarray

    return [(event.step, make_ndarray(event.tensor_proto).item()) for event in reader.Tensors(tag)]


def test_scalars_are_curves(tmp_path):
    """Every scalar is a curve by its name, of single precision, with its steps and times."""
    sink = sinks.TensorBoard(tmp_path)
    for step in (1, 10, 20):
        scalars = {"loss": 0.1 * step, "gate/rate": float("nan"), "big": 1e300, "step": step}
        sink.write(Record(step, 1e9 + step, scalars=scalars))
    sink.close()
    reader = read(tmp_path)
    assert set(reader.Tags()["scalars"]) == {"loss", "gate/rate", "big", "step"}
    assert [(event.step, event.wall_time) for event in reader.Scalars("loss")] == [
        (step, 1e9 + step) for step in (1, 10, 20)
    ]
    assert [event.value for event in reader.Scalars("loss")] == [float(np.float32(0.1 * k)) for k in (1, 10, 20)]
    assert [event.value for event in reader.Scalars("step")] == [1, 10, 20]
    assert np.isnan(reader.Scalars("gate/rate")[0].value)
    assert reader.Scalars("big")[0].value == np.inf
    assert reader.Tags()["tensors"] == []


def test_sites_of_a_watched_model(tmp_path):
    """The names of sites stay as they are; TensorBoard groups cards by the part before the first slash."""
    names = ["layers/0/up:output/rms", "layers/0/up/kernel:update_ratio", "layers/1/attention:attention/entropy/0"]
    with_root = [*names, ":output/rms"]
    sink = sinks.TensorBoard(tmp_path)
    sink.write(Record(1, 1e9, scalars=dict.fromkeys(with_root, 1.0)))
    sink.close()
    tags = read(tmp_path).Tags()["scalars"]
    assert set(tags) == set(with_root)
    assert {tag.partition("/")[0] for tag in tags} == {"layers", ":output"}


def test_counts_are_exact_below_2_to_the_53(tmp_path):
    """A count beyond single precision is also written in double precision from then on."""
    counts = [2**24 - 1, 2**24, 2**24 + 1, 2**24 + 2, 2**53 - 1]
    sink = sinks.TensorBoard(tmp_path)
    for step, count in enumerate(counts):
        sink.write(Record(step, 0.0, scalars={"tokens": count, "loss": 0.1}))
    sink.close()
    reader = read(tmp_path)
    curve = [event.value for event in reader.Scalars("tokens")]
    assert curve == [float(np.float32(count)) for count in counts]
    assert curve[:2] == counts[:2]
    assert reader.Tags()["tensors"] == ["tokens/exact"]
    assert exact(reader, "tokens/exact") == list(enumerate(counts))[2:]


def test_names_that_come_and_go(tmp_path):
    """Each record has its own names and numbers, independent of earlier records."""
    records = [
        {"a": 1, "loss": float("nan"), "tokens": 2**53 - 1},
        {"a": 2, "loss": 0.5, "tokens": 2**53 - 2},
        {"loss": -1e300, "a": 3},
        {},
        {"a": 2**24 + 1, "long/" + "x" * 300: 7, "tokens": 5},
    ]
    sink = sinks.TensorBoard(tmp_path)
    for step, scalars in enumerate(records):
        bins = {"acts": Bins(np.arange(3.0), np.array([step, 1], np.uint64))} if step % 2 else {}
        sink.write(Record(step, 0.0, scalars=scalars, histograms=bins))
    sink.close()
    reader = read(tmp_path)
    for name in {name for scalars in records for name in scalars}:
        found = [(event.step, event.value) for event in reader.Scalars(name)]
        with np.errstate(over="ignore"):
            wanted = [(k, float(np.float32(scalars[name]))) for k, scalars in enumerate(records) if name in scalars]
        np.testing.assert_array_equal(found, wanted)
    assert exact(reader, "tokens/exact") == [(0, 2**53 - 1), (1, 2**53 - 2), (4, 5)]
    assert exact(reader, "a/exact") == [(4, 2**24 + 1)]
    assert [event.histogram_value.bucket for event in reader.Histograms("acts")] == [[1, 1], [3, 1]]


def test_the_bins_are_the_statistics(tmp_path):
    """A histogram's counts are those that were counted, bin by bin, and its edges those that were declared."""
    model = nnx.Dict(acts=tallax.statistics.Histogram(-2.0, 2.0, bins=16), load=tallax.Counter(shape=3))
    model.acts.update(jax.random.normal(jax.random.key(0), (1000,)))
    model.load.set(np.array([2**53 - 1, 0, 7]))
    with tallax.Logger(sinks.TensorBoard(tmp_path)) as log:
        log(model)
    counted = model.acts.compute()
    reader = read(tmp_path)
    (event,) = reader.Histograms("acts")
    found = event.histogram_value
    assert found.bucket == counted.counts.tolist()
    assert [found.min, *found.bucket_limit] == counted.edges.tolist()
    assert (found.max, found.num) == (2.0, counted.counts.sum())
    (event,) = reader.Histograms("load")
    assert event.histogram_value.bucket == [2**53 - 1, 0, 7]
    assert [event.histogram_value.min, *event.histogram_value.bucket_limit] == [-0.5, 0.5, 1.5, 2.5]


def test_resuming_hides_later_events(tmp_path):
    """A run that goes on from step 3 shows each step once."""
    for steps, loss in ((range(1, 6), 1.0), (range(3, 5), 2.0)):
        sink = sinks.TensorBoard(tmp_path)
        for step in steps:
            sink.write(
                Record(step, time.time(), scalars={"loss": loss}, histograms={"a": Bins(np.arange(3.0), np.arange(2))})
            )
        sink.close()
    reader = read(tmp_path)
    assert [(event.step, event.value) for event in reader.Scalars("loss")] == [(1, 1), (2, 1), (3, 2), (4, 2)]
    assert [event.step for event in reader.Histograms("a")] == [1, 2, 3, 4]


def test_processes_are_runs_of_their_own(tmp_path):
    """A further process is another run in the folder."""
    for process in (0, 2):
        sink = sinks.TensorBoard(tmp_path)
        sink.write(Record(1, 0.0, process, {"loss": float(process)}))
        sink.close()
    assert read(tmp_path / "process-2").Scalars("loss")[0].value == 2


def test_kill_9(tmp_path):
    """Records for which `write` has returned are readable after kill -9."""
    program = f"""
import os, signal
from tallax.sinks import Record, TensorBoard
sink = TensorBoard({str(tmp_path)!r})
for step in range(1, 51):
    sink.write(Record(step, 0.0, scalars={{"loss": 1 / step}}))
os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode == -9
    assert [event.step for event in read(tmp_path).Scalars("loss")] == list(range(1, 51))


def test_a_full_disk(tmp_path):
    """A file that may not grow is an error of the sink, by its name; it stays whole, and goes on when there is room."""
    program = f"""
import resource, tallax
log = tallax.Logger(tallax.sinks.TensorBoard({str(tmp_path)!r}), every=1)
log(step=1, loss=1.0)
log.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
try:
    for step in range(2, 50):
        log(step=step, loss=1.0)
    log.flush()
except tallax.SinkError as error:
    print(error)
try:
    log.flush()
except tallax.SinkError:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
log(step=50, loss=1.0)
log.close()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert f"TensorBoard({str(tmp_path)!r}): failed" in result.stdout
    assert "File too large" in result.stdout
    steps = [event.step for event in read(tmp_path).Scalars("loss")]
    assert steps == [*range(1, len(steps)), 50]
    assert 2 < len(steps) < 10


def test_without_tensorboardx(monkeypatch):
    """If tensorboardX is missing, the error has the install command."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "tensorboardX"]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "tallax.sinks._tensorboard")
    monkeypatch.delitem(vars(tallax.sinks), "TensorBoard")
    with pytest.raises(tallax.MissingExtraError, match=re.escape("pip install 'tallax[tensorboard]'")):
        _ = tallax.sinks.TensorBoard


@pytest.fixture
def browser(tmp_path):
    """Debian's Chromium, driven by its ChromeDriver."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs Debian's chromium and chromium-driver: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in [*CHROMIUM.split(), "--window-size=1600,1300", f"--user-data-dir={tmp_path / 'profile'}"]:
        options.add_argument(argument)
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield found
    found.quit()


@pytest.fixture
def served(tmp_path):
    """The address of a TensorBoard server, started as its users start it, on a run of fifty steps."""
    # In one group, since the page opens no more than two.
    logits = tallax.statistics.Histogram(-3.0, 3.0, bins=24)
    model = nnx.Dict(train=nnx.Dict(step=tallax.Counter(), logits=logits))
    with tallax.Logger(sinks.TensorBoard(tmp_path / "run"), every=5) as log:
        for step in range(50):
            model.train.step += 1
            logits.update(jax.random.truncated_normal(jax.random.key(step), -2, 2, (100,)))
            log(model, **{"train/loss": jnp.exp(-0.1 * step)})
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(tmp_path / "run")]
    command += ["--host", "127.0.0.1", "--port", "0"]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as server:
        try:
            lines = []
            for line in server.stdout:
                lines.append(line)
                address = re.search(r"http://127\.0\.0\.1:\d+/", line)
                if address:
                    break
            assert address, "".join(lines)
            yield address[0]
        finally:
            server.terminate()


@pytest.mark.slow
def test_the_page(served, browser):
    """On TensorBoard's page are the curve of the loss, the one of a count, and the histogram over the steps."""
    from matplotlib import pyplot
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    browser.get(served + "#timeseries")

    def cards(browser):
        found = {
            "".join(card.text.split("\n")[:2]): card for card in browser.find_elements(By.CSS_SELECTOR, "card-view")
        }
        drawn = {"train/step": curve, "train/loss": curve, "train/logits": ridges}
        return found if all(name in found and draws(found[name]) for name, draws in drawn.items()) else None

    def curve(card):
        """Whether pixels of a chart have the dark blue of the run's colour."""
        charts = card.find_elements(By.CSS_SELECTOR, "line-chart canvas")
        if not charts:
            return False
        red, green, blue = np.moveaxis(pyplot.imread(io.BytesIO(charts[0].screenshot_as_png))[..., :3], -1, 0)
        return ((blue > red + 0.05) & (blue > green) & (red < 0.5)).sum() > 100

    def ridges(card):
        """Whether there is a ridge for each of the eleven records."""
        paths = card.find_elements(By.CSS_SELECTOR, "tb-histogram svg path")
        return sum(len(path.get_attribute("d")) > 200 for path in paths) >= 11

    try:
        found = WebDriverWait(browser, 60).until(cards)
    finally:
        ARTIFACTS.mkdir(parents=True, exist_ok=True)
        browser.save_screenshot(str(ARTIFACTS / "tensorboard.png"))
    # The axes: a histogram's bins and steps; a curve's steps, and the count at the last one.
    labels = set(found["train/logits"].text.split("\n"))
    assert {"10", "20", "30", "40", "50"} <= labels
    assert any(label.startswith("-2") for label in labels)
    assert {"10", "20", "30", "40"} <= set(found["train/loss"].text.split("\n"))
    assert "50" in found["train/step"].text.partition("Relative")[2].split("\n")
