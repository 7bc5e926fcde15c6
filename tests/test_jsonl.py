# SPDX-License-Identifier: Apache-2.0
"""Runs on disk: what the JSONL sink writes is what `Run` reads, whatever happens in between."""

import errno
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import tallax
from tallax.runs._jsonl_format import Decoder, Encoder
from tallax.sinks import Bins, Jsonl, Record, StateInfo

names = st.text(min_size=1, max_size=8)
counts = st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=5)


@st.composite
def bins(draw):
    values = draw(counts)
    edges = draw(st.lists(st.floats(-1e30, 1e30), min_size=len(values) + 1, max_size=len(values) + 1, unique=True))
    return Bins(np.sort(np.array(edges)), np.array(values, np.uint64))


records = st.builds(
    Record,
    step=st.integers(0, 2**64 - 1),
    time=st.floats(0, 2e9),
    process=st.integers(0, 3),
    scalars=st.dictionaries(names, st.integers() | st.floats(allow_nan=False), max_size=4),
    histograms=st.dictionaries(st.sampled_from("abc"), bins(), max_size=3),
    state=st.dictionaries(
        st.sampled_from("abc"),
        st.builds(StateInfo, names, st.tuples(st.integers(0, 9)), st.just("uint32"), st.integers(0, 99), st.booleans()),
        max_size=3,
    ),
)


@given(st.lists(records, max_size=4))
def test_written_records_are_read_back(written):
    """Records come back from their lines, to the bit: integers of any size, names of any letters, edges that change."""
    encoder, decoder = Encoder(), Decoder("test")
    assert decoder.record(b'{"format":"tallax run","version":1}') is None
    known = {}
    for record in written:
        line = encoder.line(record)
        assert line.count(b"\n") == 1
        read = decoder.record(line)
        known |= record.state
        assert (read.step, read.time, read.process) == (record.step, record.time, record.process)
        assert read.scalars == record.scalars
        assert {name: type(value) for name, value in read.scalars.items()} == {
            name: type(value) for name, value in record.scalars.items()
        }
        assert read.histograms == record.histograms
        assert read.state == known


def test_not_a_number():
    """NaN and the infinities are strings in the file, which every reader of JSON can read, and come back as floats."""
    encoder, decoder = Encoder(), Decoder("test")
    decoder.record(b'{"format":"tallax run","version":1}')
    line = encoder.line(Record(1, 0.0, scalars={"a": float("nan"), "b": float("inf"), "c": -float("inf")}))
    assert b'"scalars":{"a":"NaN","b":"Infinity","c":"-Infinity"}' in line
    read = decoder.record(line)
    assert np.isnan(read.scalars["a"])
    assert (read.scalars["b"], read.scalars["c"]) == (np.inf, -np.inf)


def write(path, steps, **options):
    sink = Jsonl(path)
    for step in steps:
        sink.write(Record(step, float(step), scalars={"loss": 1 / step}, **options))
    sink.close()


def test_edges_and_state_are_written_once(tmp_path):
    """A line omits edges and descriptions that an earlier line has."""
    acts = {"acts": Bins(np.array([0.0, 1.0, 2.0]), np.array([3, 4], np.uint64))}
    item = {"acts": StateInfo("Histogram", (7,), "uint32", 56, True)}
    write(tmp_path, [1, 2], histograms=acts, state=item)
    first, second = (tmp_path / "records.jsonl").read_text().splitlines()[1:]
    assert '"edges":[0.0,1.0,2.0]' in first
    assert "edges" not in second
    assert '"state"' in first
    assert '"state"' not in second
    run = tallax.Run(tmp_path)
    assert run.histograms["acts"].values == [acts["acts"]] * 2
    assert run.state == item


def test_resuming_replaces_later_records(tmp_path):
    """A run that resumes at step 3 has each step once, and keeps the replaced records separately."""
    write(tmp_path, [1, 2, 3, 4, 5])
    old = tallax.Run(tmp_path)
    write(tmp_path, [3, 4])
    assert tallax.Run(tmp_path).steps == [1, 2, 3, 4]
    dropped = (tmp_path / "records.jsonl.dropped").read_text().splitlines()
    assert [line.partition(",")[0] for line in dropped] == ['{"step":3', '{"step":4', '{"step":5']
    assert old.refresh()
    assert old.steps == [1, 2, 3, 4]
    assert not old.refresh()


def test_resuming_writes_edges_again(tmp_path):
    """The first line after a resume repeats the edges."""
    for edges in ([0.0, 1.0], [0.0, 2.0]):
        write(tmp_path, [2, 3], histograms={"a": Bins(np.array(edges), np.array([1], np.uint64))})
    assert [bins.edges.tolist() for bins in tallax.Run(tmp_path).histograms["a"].values] == [[0.0, 2.0]] * 2


def test_following(tmp_path):
    """A run is read as it grows, and a line that is being written is left for later."""
    write(tmp_path, [1, 2])
    run = tallax.Run(tmp_path)
    file = tmp_path / "records.jsonl"
    whole = Encoder().line(Record(3, 3.0, scalars={"loss": 0.5}))
    with file.open("ab") as end:
        end.write(whole[:10])
        end.flush()
        assert not run.refresh()
        end.write(whole[10:])
        end.flush()
        assert run.refresh()
    assert run.scalars["loss"].steps == [1, 2, 3]


def test_processes_have_files_of_their_own(tmp_path):
    """Further processes write to their own files, and their names have a prefix."""
    for process in range(3):
        write(tmp_path, [1, 2], process=process)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "records.jsonl",
        "records.process-1.jsonl",
        "records.process-2.jsonl",
    ]
    run = tallax.Run(tmp_path)
    assert set(run.scalars) == {"loss", "process-1/loss", "process-2/loss"}
    assert run.steps == [1, 2]


def test_a_folder_will_do(tmp_path):
    """A Logger takes the folder of a run as the sink that writes there."""
    for folder in (str(tmp_path / "a"), tmp_path / "b"):
        with tallax.Logger(folder) as log:
            log(step=1, loss=0.5)
        assert tallax.Run(folder).scalars["loss"].values == [0.5]


def test_a_file_may_be_named(tmp_path):
    """A path that ends in .jsonl is the file itself, whose folder is made."""
    path = tmp_path / "deep" / "run.jsonl"
    write(path, [1])
    assert tallax.Run(path).steps == [1]
    assert [file.name for file in path.parent.iterdir()] == ["run.jsonl"]


# --- when things go wrong -------------------------------------------------------------------------------------------


def test_two_writers(tmp_path):
    """A second Logger on a run that is being written raises, and leaves the file unchanged."""
    first, second = Jsonl(tmp_path), Jsonl(tmp_path)
    first.write(Record(1, 0.0))
    with pytest.raises(tallax.RunLockedError) as caught:
        second.write(Record(1, 0.0))
    assert str(caught.value) == (
        f"{tmp_path / 'records.jsonl'}: another program, or another Logger, is writing to this run.\n"
        "  got:  a record for it\n"
        "  fix:  give each its own folder; or end the other one first"
    )
    first.write(Record(2, 0.0))
    first.close()
    assert tallax.Run(tmp_path).steps == [1, 2]
    second.write(Record(3, 0.0))  # which may be tried again
    second.close()
    assert tallax.Run(tmp_path).steps == [1, 2, 3]


@pytest.mark.parametrize("text", ['{"a": 1}\n{"a": 2}\n', '{"a": 1}', "[1]\n", "\n", "\x00\x01", '{"format": "x"'])
def test_a_file_of_somebody_elses_is_left_alone(tmp_path, text):
    """A file that is not a run is neither read nor written, complete or truncated."""
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    with pytest.raises(tallax.RunError, match=r"line 1 is not a record of a run"):
        Jsonl(path).write(Record(1, 0.0))
    assert path.read_text() == text
    if text.endswith("\n"):
        with pytest.raises(tallax.RunError, match=r"line 1 is not a record of a run"):
            tallax.Run(path)


def test_a_damaged_line_is_named(tmp_path):
    """A line in the middle that can't be read is an error that names it; the file is left as it is."""
    write(tmp_path, [1, 2, 3])
    path = tmp_path / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    lines[2] = lines[2][:20] + b"\xff" + lines[2][21:]
    path.write_bytes(b"".join(lines))
    with pytest.raises(tallax.RunError) as caught:
        tallax.Run(tmp_path)
    assert str(caught.value) == (
        f"{path}: line 3 is not a record of a run.\n"
        f"  got:  {lines[2][:60]!r}\n"
        "  fix:  restore a complete copy; or cut the file before this line, to keep the records before it"
    )
    with pytest.raises(tallax.RunError, match="line 3"):
        Jsonl(tmp_path).write(Record(3, 0.0))
    assert path.read_bytes() == b"".join(lines)


def test_a_later_version(tmp_path):
    """The reader and the writer reject a later format, with the install command."""
    path = tmp_path / "records.jsonl"
    path.write_text('{"format": "tallax run", "version": 2}\n{"strange": 1}\n')
    text = (
        f"{path}: was written by a later tallax.\n"
        "  got:       version 2 of the format\n"
        "  expected:  at most 1\n"
        "  fix:       pip install --upgrade tallax"
    )
    for use in (tallax.Run, lambda path: Jsonl(path).write(Record(1, 0.0))):
        with pytest.raises(tallax.RunError) as caught:
            use(tmp_path)
        assert str(caught.value) == text


def test_no_run_here(tmp_path):
    """The error for a folder without a run explains what a run is, and lists runs in subfolders."""
    with pytest.raises(tallax.RunError) as caught:
        tallax.Run(tmp_path / "nothing")
    assert str(caught.value).splitlines()[0] == f"{tmp_path / 'nothing'}: does not exist."
    write(tmp_path / "first", [1])
    with pytest.raises(tallax.RunError) as caught:
        tallax.Run(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path}: is not a run: it contains no records.\n"
        "  expected:  a folder with a file records.jsonl, as tallax.sinks.Jsonl(folder) writes it\n"
        f"  fix:       name a run: {tmp_path / 'first'}"
    )


def test_a_full_disk(tmp_path):
    """A line that finds no space is taken back and reported; the file stays readable, and goes on with the next."""
    program = f"""
import resource, tallax
from tallax.sinks import Jsonl, Record
sink = Jsonl({str(tmp_path)!r})
sink.write(Record(1, 0.0, scalars={{"loss": 1.0}}))
size = sink._file._end
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 10, resource.RLIM_INFINITY))
try:
    sink.write(Record(2, 0.0, scalars={{"loss": 1.0}}))
except OSError as error:
    print(error.errno, open({str(tmp_path / "records.jsonl")!r}, "rb").seek(0, 2) == size)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
sink.write(Record(3, 0.0, scalars={{"loss": 1.0}}))
sink.close()
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout == f"{errno.EFBIG} True\n"
    assert tallax.Run(tmp_path).steps == [1, 3]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_a_full_disk_reaches_the_loop(tmp_path):
    """The loop hears of it at the next call, from the sink by its name."""
    log = tallax.Logger(Jsonl("/dev/full/run"), Jsonl(tmp_path), every=1)
    log(step=1)
    with pytest.raises(tallax.SinkError, match=r"Jsonl\('/dev/full/run'\): failed in writing step 1"):
        log.flush()
    log.close()
    assert tallax.Run(tmp_path).steps == [1]


@pytest.fixture
def mounted(tmp_path):
    """Mounts an empty file system of memory, with the options that it is told; unmounts it at the end."""
    folder = tmp_path / "mounted"
    folder.mkdir()
    done = []

    def mount(options):
        command = ["mount", "-t", "tmpfs", "-o", options, "none", str(folder)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            pytest.skip(f"mounting a file system is not allowed here: {result.stderr.strip()}")
        done.append(True)
        return folder

    yield mount
    if done:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_small_file_system(mounted):
    """On a full file system the existing records stay intact, and writing resumes when there is space."""
    folder = mounted("size=16k")
    filler = folder / "filler"
    filler.write_bytes(b"x" * 8000)
    sink, written, failed = Jsonl(folder), [], None
    for step in range(1, 100):
        try:
            sink.write(Record(step, 0.0, scalars={f"scalar-{k}": k / 7 for k in range(40)}))
            written.append(step)
        except OSError as error:
            failed = error
            break
    assert failed is not None
    assert failed.errno == errno.ENOSPC
    assert written
    assert tallax.Run(folder).steps == written
    filler.unlink()
    sink.write(Record(100, 0.0))
    sink.close()
    assert tallax.Run(folder).steps == [*written, 100]


def test_an_unwritable_folder(mounted):
    """A folder that may not be written to is reported in the loop, by the sink's name and the cause."""
    folder = mounted("ro")
    log = tallax.Logger(folder / "run", every=1)
    log(step=1)
    with pytest.raises(tallax.SinkError, match=rf"Jsonl\('{folder}/run'\): failed in writing step 1.*\n.*Read-only"):
        log.close()


def test_a_folder_that_is_a_file(tmp_path):
    """A path below a file can't be made, and the error names it."""
    (tmp_path / "file").write_text("")
    log = tallax.Logger(Jsonl(tmp_path / "file" / "run"), every=1)
    log(step=1)
    with pytest.raises(tallax.SinkError, match="NotADirectoryError"):
        log.close()


def test_kill_9(tmp_path):
    """After kill -9 every record whose write returned is there, the file opens, and resuming goes on with it."""
    program = f"""
import sys, tallax
from tallax.sinks import Jsonl, Record
sink = Jsonl({str(tmp_path)!r})
for step in range(1, 10**9):
    sink.write(Record(step, 0.0, scalars={{f"scalar-{{k}}": step / 7 for k in range(50)}}))
    print(step, flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        try:
            while int(process.stdout.readline()) < 50:
                pass
            time.sleep(0.01)
        finally:
            process.send_signal(signal.SIGKILL)
        told = int(process.stdout.read().splitlines()[-1])
    with (tmp_path / "records.jsonl").open("ab") as file:
        file.write(b'{"step":99999999,"sca')  # as if it had been killed in the middle of a line
    run = tallax.Run(tmp_path)
    assert run.steps == list(range(1, run.steps[-1] + 1))
    assert told <= run.steps[-1] <= told + 1
    write(tmp_path, [told - 5, told - 4])
    assert tallax.Run(tmp_path).steps == list(range(1, told - 3))


def test_bins_of_neighbours():
    """Put together, neighbouring bins keep every count, and the edges are among those they had."""
    bins = Bins(np.arange(12.0), np.arange(11, dtype=np.uint64) + 2**60)
    few = bins.at_most(4)
    assert few.counts.tolist() == [3 * 2**60 + 3, 3 * 2**60 + 12, 3 * 2**60 + 21, 2 * 2**60 + 19]
    assert few.edges.tolist() == [0, 3, 6, 9, 11]
    assert few.total == bins.total == 11 * 2**60 + 55  # more than 64 bits hold
    assert bins.at_most(11) is bins
    assert bins.middles.tolist() == [k + 0.5 for k in range(11)]
