# SPDX-License-Identifier: Apache-2.0
"""Values that cannot be written: the record is written without them, each is named once, and the loop goes on."""

import decimal
import enum
import io
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import tallax
from tallax.logging._flatten import _distribution  # double precision comes to a Logger under x64 only
from tallax.sinks import Bins, Record
from tests.test_step_clock import Steps

F32 = np.finfo(np.float32)


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    HIGH = 2


class NoText:
    def __repr__(self):
        raise RuntimeError("no text")


class NoFloat(float):
    def __float__(self):
        raise RuntimeError("no number")


class Broken(tallax.statistics.Rate):
    def read(self, state):
        raise ZeroDivisionError("never")


def record_of(*objects, **scalars):
    """Returns the record of one call, and what was warned of."""
    sink = Steps()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with tallax.Logger(sink, every=1) as log:
            log(*objects, step=1, **scalars)
    (record,) = sink.records
    return record, "\n".join(str(warning.message) for warning in caught)


# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high"),
    [
        (np.full(64, F32.min), F32.min, F32.min),
        (np.full(64, F32.max), F32.max, F32.max),
        (np.full(64, 1e15, np.float32), 1e15, 1e15),
        (np.full(33, 1e17, np.float32), 1e17, 1e17),
        (np.full(64, 0.5, np.float32), 0.5, 0.5),
        (np.array([F32.min, F32.max] * 32), F32.min, F32.max),
        (np.array([1e17, np.nextafter(np.float32(1e17), np.float32(np.inf))] * 20, np.float32), 1e17, None),
        (np.array([1e-45, 3e-45] * 32, np.float32), 0, None),
        (np.full(64, 3e38, jnp.bfloat16), 3e38, 3e38),
        (np.arange(40).astype(jnp.float8_e4m3fn), 0, 40),
        (np.tile(np.arange(-8, 8), 4).astype(jnp.int4), -8, 7),
        (np.full(64, 2**32 - 1, np.uint32), 2**32 - 1, 2**32 - 1),
    ],
)
def test_large_arrays_have_a_histogram_of_all_their_entries(value, low, high):
    """However large, small or alike they are, and of any dtype: all entries lie in the bins, whose edges rise."""
    record, warned = record_of(nnx.Dict(b=tallax.Buffer(value)))
    bins = record.histograms["b"]
    assert warned == ""
    assert bins.total == value.size
    assert np.isfinite(bins.edges).all()
    assert (np.diff(bins.edges) > 0).all()
    assert np.isfinite(bins.middles).all()
    values = value.astype(np.float64)
    assert bins.edges[0] <= values.min() == record.scalars["b/min"]
    assert record.scalars["b/max"] == values.max() <= bins.edges[-1]
    assert low is None or record.scalars["b/min"] == pytest.approx(low, rel=1e-2)
    assert high is None or record.scalars["b/max"] == pytest.approx(high, rel=1e-2)


def test_double_precision_at_its_ends():
    """Doubles as far apart, or as large, as there are have bins between finite edges, too."""
    largest = np.finfo(np.float64).max
    for numbers in ([largest] * 40, [-largest] * 40, [-largest, largest] * 20, [5e-324] * 40, [0.0, 5e-324] * 20):
        bins = _distribution(np.array(numbers))
        assert bins.total == 40
        assert np.isfinite(bins.edges).all()
        assert (np.diff(bins.edges) > 0).all()


def test_entries_that_are_not_finite_are_counted_beside_the_histogram():
    """The histogram has the finite entries; without finite entries there is no histogram."""
    some = jnp.arange(64.0).at[3].set(jnp.nan).at[4].set(jnp.inf)
    record, warned = record_of(nnx.Dict(some=tallax.Buffer(some), all=tallax.Buffer(jnp.full(64, jnp.nan))))
    assert warned == ""
    assert record.histograms["some"].total == 62
    assert (record.scalars["some/nonfinite"], record.scalars["all/nonfinite"]) == (2, 64)
    assert np.isnan(record.scalars["all/mean"])
    assert set(record.histograms) == {"some"}


@pytest.mark.parametrize("shape", [(), (8,), (64,)])
def test_complex_values_are_two_scalars(shape):
    """The real and the imaginary parts are each written as an array of that shape is."""
    value = jnp.full(shape, 1.5 - 2j, jnp.complex64)
    record, warned = record_of(nnx.Dict(freqs=tallax.Buffer(value)), loss=1.0)
    plain, _ = record_of(nnx.Dict(freqs=nnx.Dict(real=tallax.Buffer(value.real), imag=tallax.Buffer(value.imag))))
    assert warned == ""
    assert dict(record.scalars) == {**plain.scalars, "loss": 1.0}
    assert dict(record.histograms) == dict(plain.histograms)
    assert 1.5 in record.scalars.values()
    assert -2 in record.scalars.values()


def test_metrics_of_odd_types():
    """Complex numbers, integer enums and long doubles are written; other types are omitted by name."""
    good = {
        "level": Level.HIGH, "z": 1 + 2j, "z_np": np.complex64(3j), "z_jax": jnp.complex64(4), "long": np.longdouble(5),
        "large": 10**400, "half": np.float16(0.5), "four": jnp.int4(3),
    }  # fmt: skip
    bad = {
        "word": "low", "none": None, "colour": Colour.RED, "text": NoText(), "number": NoFloat(1),
        "thing": np.array(None), "key": jax.random.key(0), "decimal": decimal.Decimal(1), "vector": jnp.arange(3),
        "empty": np.zeros(0), "date": np.datetime64(3, "s"),
    }  # fmt: skip
    record, warned = record_of(loss=jnp.float32(0.5), **good, **bad)
    assert dict(record.scalars) == {
        "loss": 0.5, "level": 2, "z/real": 1, "z/imag": 2, "z_np/real": 0, "z_np/imag": 3, "z_jax/real": 4,
        "z_jax/imag": 0, "long": 5, "large": 10**400, "half": 0.5, "four": 3,
    }  # fmt: skip
    assert type(record.scalars["level"]) is int
    for name in bad:
        assert f"{name}: " in warned or f"{name}, " in warned


def test_items_that_are_no_numbers():
    """Random keys, and a statistic that raises, are left out by name; the rest of the model is written."""
    keys = {"key": jax.random.key(0), "keys": jax.random.split(jax.random.key(0), 40)}
    model = nnx.Dict(
        step=tallax.Counter(3), odd=Broken(), **{name: tallax.Buffer(value) for name, value in keys.items()}
    )
    record, warned = record_of(model, loss=1.0)
    assert dict(record.scalars) == {"step": 3, "loss": 1.0}
    assert "key, keys: a Logger writes numbers" in warned
    assert "odd: cannot be written" in warned
    with pytest.raises(ZeroDivisionError, match="never"):
        tallax.collect(model).result()


def test_a_metric_that_the_device_lost():
    """A metric that failed on the device is named; the other metrics and the state are written."""
    lost = jnp.float32(1) + 1
    lost.delete()
    record, warned = record_of(nnx.Dict(seen=tallax.Counter(3)), loss=jnp.float32(0.5), lost=lost, more=jnp.int32(4))
    assert dict(record.scalars) == {"seen": 3, "loss": 0.5, "more": 4}
    assert warned.startswith("lost: cannot be read, and is left out of the records.")


def test_names_that_clash():
    """A scalar never hides a value of the state, at any depth: the scalar is omitted."""
    model = nnx.Dict(gate=tallax.Counter(3), acts=tallax.statistics.Histogram(0.0, 1.0, bins=2))
    scalars = {"gate": 1, "acts/nan": 1, "acts/a/b": 1, "fine": 1, "acts2": 2}
    record, warned = record_of(model, **scalars)
    assert dict(record.scalars) == {"gate": 3, "fine": 1, "acts2": 2}
    assert warned.startswith("gate, acts/nan, acts/a/b: another value has this name")
    for z in (1 + 2j, jnp.complex64(1 + 2j)):
        record, warned = record_of(z=z, **{"z/real": 7.0})
        assert dict(record.scalars) == {"z/real": 7, "z/imag": 2}
        assert warned.startswith("z/real: ")


# --- once, by name ----------------------------------------------------------------------------------------------------


def test_each_is_named_once():
    """Hundreds of bad values in a hundred records are reported once for each name and reason."""
    sink = Steps()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with tallax.Logger(sink, every=1) as log:
            for step in range(100):
                log(step=step, loss=1.0, **{f"bad{k}": f"at {step}" for k in range(300)})
                log.flush()
            log.now(step=100, bad7=jnp.arange(3))
    assert sink.steps == list(range(101))
    assert len(caught) == 2
    assert caught[0].filename == __file__
    first, second = (str(warning.message) for warning in caught)
    assert len(first.splitlines()) == 3
    assert all(f"bad{k}, " in first for k in range(299))
    assert second.startswith("bad7: a Logger takes arrays of one number")


def test_warnings_that_are_errors():
    """They are raised by the call after, or on closing; the record is there, and so is all that comes later."""
    sink = Steps()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with tallax.Logger(sink, every=1) as log:
            log(step=1, a="x", b=2)
            with pytest.raises(UserWarning, match="a: a Logger takes numbers"):
                log.flush()
            log(step=2, a="x", b=3)
    assert [(record.step, dict(record.scalars)) for record in sink.records] == [(1, {"b": 2}), (2, {"b": 3})]


# --- exclude ----------------------------------------------------------------------------------------------------------


def test_excluded_names_are_not_in_records():
    """Patterns match state, values and scalars, and everything below; excluded values cause no warning."""
    model = nnx.Dict(
        step=tallax.Counter(3),
        gate=nnx.Dict(fired=tallax.statistics.Rate(), odd=Broken()),
        load=tallax.Counter(shape=3),
        freqs=tallax.Buffer(jnp.ones(64)),
    )
    sink = Steps()
    patterns = ["gate/odd", "gate/*/total", "freq?", "load/[01]", "note", "train"]
    with tallax.Logger(sink, exclude=patterns) as log:
        log(model, note="x", loss=1, **{"train/a": 1, "train/b": jnp.float32(2)})
    (record,) = sink.records
    assert set(record.scalars) == {"step", "gate/fired/fired", "gate/fired/rate", "load/2", "loss"}
    assert set(record.histograms) == {"load"}
    assert set(record.state) == {"step", "gate/fired", "load"}
    sink = Steps()
    with tallax.Logger(sink, exclude="*") as log:
        log(model)
    assert (sink.steps, dict(sink.records[0].scalars), dict(sink.records[0].state)) == ([3], {}, {})


@pytest.mark.parametrize("patterns", [3, [3], [""], "", None, b"x", {"a": 1}])
def test_patterns_are_text(patterns):
    """Patterns that are not text raise when the Logger is created; None means no pattern."""
    if patterns is None:
        assert tallax.Logger(exclude=None)
    else:
        with pytest.raises(tallax.InvalidTypeError, match="exclude= must be a pattern of names"):
            tallax.Logger(exclude=patterns)


def test_a_pattern_that_matches_nothing():
    """An unused pattern is reported when the Logger is closed, unless there was no record."""
    log = tallax.Logger(Steps(), exclude=["nothing", "late"])
    log(step=1, loss=1)
    log.now(step=2, late=1)
    with pytest.warns(UserWarning, match="got:  'nothing'"):
        log.close()
    with tallax.Logger(Steps(), exclude="nothing"):
        pass


# --- sinks ------------------------------------------------------------------------------------------------------------

HUGE = 10**400  # beyond a double
LONG = 10**5000  # beyond what Python turns into text
ODD = "\ud800"  # no text that can be encoded
EVERYTHING = {
    "loss": 0.5, "huge": HUGE, "long": LONG, ODD: 1, "": 2, "x" * 2000: 3, "a b,%$\n\t": 4, "ü…": 5, "nan": np.nan,
    "inf": np.inf, "neg": -np.inf, "tiny": 5e-324, "largest": 1.7e308, "count": 2**64 - 1,
    "beyond": 2**70, "low": -(2**70),
}  # fmt: skip
WIDE = Bins(np.array([-1.7e308, 0, 1.7e308]), np.array([2**64 - 1, 2**64 - 1], np.uint64))


def written(sink, left_out):
    """Has a sink write records with and without odd values; checks which ones it could not."""
    for step in (1, 2):
        histograms = {"wide": WIDE, "fine": Bins(np.arange(3.0), np.ones(2, np.uint64))}
        errors = sink.write(Record(step, 1.7e9, 0, EVERYTHING, histograms))
        assert set(errors) == left_out
        assert all(isinstance(error, Exception) for error in errors.values())
    sink.write(Record(3, 1.7e9, 0, {"loss": 0.25}, {"fine": Bins(np.arange(3.0), np.array([4, 5], np.uint64))}))
    with pytest.raises((ValueError, OverflowError)):
        sink.write(Record(4, 1.7e9, 0, {"long": LONG}))  # it could write nothing
    sink.write(Record(5, 1.7e9, 0, {"loss": 0.125}))
    sink.close()


def test_jsonl_writes_all_other_values(tmp_path):
    """All but an integer that Python does not turn into text."""
    written(tallax.sinks.Jsonl(tmp_path), {"long"})
    run = tallax.Run(tmp_path)
    assert run.steps == [1, 2, 3, 5]
    assert run.scalars["huge"].values == [HUGE, HUGE]
    assert run.scalars[ODD].values == [1, 1]
    assert set(run.scalars) == set(EVERYTHING) - {"long"}
    assert run.histograms["wide"].values == [WIDE, WIDE]
    assert run.histograms["fine"].values[2].counts.tolist() == [4, 5]


def test_parquet_writes_all_other_values(tmp_path):
    """All but integers that no double holds, and names that are no text."""
    pq = pytest.importorskip("pyarrow.parquet")
    written(tallax.sinks.Parquet(tmp_path), {"long", "huge", ODD})
    table = pq.read_table(tmp_path / "records.parquet")
    names = [name for name, step in zip(table["name"].to_pylist(), table["step"].to_pylist(), strict=True) if step == 2]
    assert set(names) == {*EVERYTHING, "wide", "fine"} - {"long", "huge", ODD}
    assert table["step"].to_pylist()[-1] == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning:tensorboard", "ignore::UserWarning:tensorboard")
def test_tensorboard_writes_all_other_values(tmp_path):
    """All but integers that no double holds, and names that are no text."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    written(tallax.sinks.TensorBoard(tmp_path), {"long", "huge", ODD})
    reader = accumulator.EventAccumulator(str(tmp_path), size_guidance={"scalars": 0, "histograms": 0})
    with np.errstate(over="ignore"):  # in TensorBoard's own sums
        reader.Reload()
    assert set(reader.Tags()["scalars"]) == set(EVERYTHING) - {"long", "huge", ODD}
    assert [event.step for event in reader.Scalars("loss")] == [1, 2, 3, 5]
    assert [event.step for event in reader.Histograms("fine")] == [1, 2, 3]


@pytest.mark.parametrize("terminal", [False, True])
def test_the_console_shows_all_other_values(terminal):
    """All but integers that no double holds, and names that are no text: one of these would take the whole table."""
    import rich.console

    file = io.TextIOWrapper(io.BytesIO(), "utf-8")
    console = rich.console.Console(file=file, force_terminal=terminal, width=80, height=60, legacy_windows=False)
    written(tallax.sinks.Console(console=console, every_seconds=0), {"long", "huge", ODD})
    file.flush()
    text = file.buffer.getvalue().decode()
    assert "loss" in text
    assert "18,446,744,073,709,551,615" in text


class Floats:
    """A backend that takes nothing but doubles, as many do."""

    def __init__(self):
        self.seen = {}

    def log_scalar(self, event, value, **kwargs):
        self.seen.setdefault(event.encode().decode(), []).append(float(value))

    def close(self):
        pass


def test_a_backend_is_given_each_value():
    """One that it refuses takes none of the others with it."""
    backend = Floats()
    written(tallax.sinks.as_sink(backend), {"long", "huge", ODD})
    assert backend.seen["loss"] == [0.5, 0.5, 0.25, 0.125]
    assert backend.seen["beyond"] == [2.0**70] * 2
    assert backend.seen["fine/count"] == [2, 2, 9]


def test_a_writer_of_clu_is_given_each_value():
    """A value that its writer refuses, with all others, goes without these."""

    class Writer:
        def __init__(self):
            self.seen, self.tables, self.flushed = {}, {}, 0

        def write_scalars(self, step, scalars):
            self.seen.setdefault(step, {}).update({name.encode(): float(value) for name, value in scalars.items()})

        def write_summaries(self, step, tables, metadata):
            self.tables.setdefault(step, []).extend(tables)

        def flush(self):
            self.flushed += 1

        def close(self):
            pass

    writer = Writer()
    written(tallax.sinks.Clu(writer), {"long", "huge", ODD})
    assert writer.seen[2][b"loss"] == 0.5
    assert writer.tables == {1: ["wide", "fine"], 2: ["wide", "fine"], 3: ["fine"]}
    assert writer.flushed == 4


def test_the_logger_names_the_sink_that_left_a_value_out(tmp_path):
    """The warning names the sink; the others have the value, and the loop continues."""
    keeps = Steps()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with tallax.Logger(tmp_path, keeps, Floats(), every=1) as log:
            for step in range(1, 30):
                log(step=step, loss=1.0, long=LONG)
    assert len(keeps.records) == 29
    assert all(record.scalars["long"] == LONG for record in keeps.records)
    assert tallax.Run(tmp_path).steps == list(range(1, 30))
    text = "\n".join(str(warning.message) for warning in caught)
    assert text.count(f"long: cannot be written by Jsonl({str(tmp_path)!r}), and is left out of the records.") == 1
    assert text.count("long: cannot be written by Floats, and is left out of the records.") == 1


def test_a_sink_that_can_write_nothing_ends_the_loop():
    """If a sink can write nothing, this is an error, like a full disk."""
    log = tallax.Logger(Floats(), every=1)
    log(step=1, long=LONG)
    with pytest.raises(tallax.SinkError, match=r"Floats: failed in writing step 1\.\n  got:  OverflowError"):
        log.close()
