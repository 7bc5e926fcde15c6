# SPDX-License-Identifier: Apache-2.0
"""`tallax doctor`: it tells what is there, and whatever is broken keeps it from nothing."""

import json
import os
import re
import subprocess
import sys
from importlib import metadata

import jax
import pytest

import tallax
from tallax import _doctor

WITHOUT_TYPER = """
import sys

class Without:
    def find_spec(self, name, *_):
        if name == "typer":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
import tallax.cli; tallax.cli.main()
"""


def doctor(*arguments, code="import tallax.cli; tallax.cli.main()", **environment):
    """Runs `tallax doctor` and returns what it printed."""
    command = [sys.executable, "-W", "error", "-c", code, "doctor", *arguments]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=2", **environment}
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    return ended.stdout


@pytest.fixture(scope="module")
def told():
    return json.loads(doctor("--json", JAX_ENABLE_X64="1"))


def test_versions_are_those_of_the_packages(told):
    """Each package that tallax stands on, by its version."""
    assert told["packages"]["jax"] == jax.__version__
    assert set(told["packages"]) == {"tallax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy"}
    assert all(told["packages"][name] == metadata.version(name) for name in told["packages"])
    assert told["python"].startswith(sys.version.split()[0])


def test_the_report_has_jax_s_versions_and_devices(told):
    """The backend, a kind for each device, x64 and the mode of NNX, as the environment has them."""
    assert told["jax"] == {
        "x64": True,
        "backend": "cpu",
        "devices": ["cpu", "cpu"],
        "processes": 1,
        "nnx": "graph mode by default",
        "errors": {},
    }
    assert told["environment"]["JAX_ENABLE_X64"] == "1"


def test_every_extra_is_listed(told):
    """The extras of pyproject.toml with their packages."""
    assert set(told["extras"]) == {
        "cli",
        "plot",
        "console",
        "tensorboard",
        "parquet",
        "wandb",
        "mlflow",
        "demo",
        "torch",
    }
    assert told["extras"]["cli"] == {name: _doctor._version(name) for name in ("rich", "typer")}


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"NNX_GRAPH_MODE": "0"}, "tree mode by default"),
        ({"NNX_GRAPH_UPDATES": "0"}, "graph mode by default, graph_updates=False"),
    ],
)
def test_the_mode_of_nnx(environment, said):
    """The report has Flax's own settings."""
    assert json.loads(doctor("--json", **environment))["jax"]["nnx"] == said


def test_no_backend():
    """A missing platform is reported, together with everything else; typer is not needed."""
    text = doctor(code=WITHOUT_TYPER, JAX_PLATFORMS="cuda")
    rows = dict(line.split(maxsplit=1) for line in text.splitlines() if line.strip() and line[0] != " ")
    assert re.match(r"FAILED: \w+: \S", rows["backend"])
    assert rows["jax"] == jax.__version__
    assert rows["JAX_PLATFORMS"] == "cuda"
    assert rows["x64"] == "off"
    assert rows["nnx"] == "graph mode by default"
    assert "devices" not in rows


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.abort()", "the process that asked JAX ended with -6"),
        ("import time; time.sleep(60)", "JAX did not start within 3 s"),
    ],
)
def test_jax_that_ends_or_hangs_the_process(tmp_path, monkeypatch, code, said):
    """If JAX ends or hangs its process, the report is still printed."""
    (tmp_path / "jax.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path) + os.pathsep + os.environ.get("PYTHONPATH", ""))
    assert _doctor._asked_apart(3.0)["errors"]["backend"].splitlines()[0] == said


def test_a_missing_extra_names_the_install_line(monkeypatch):
    """An extra with a missing package has an install command; in a source tree, extras are unknown."""
    version = metadata.version

    def without(name):
        if name in ("pyarrow", "jaxlib"):
            raise metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(metadata, "version", without)
    monkeypatch.setattr(_doctor, "_asked_apart", lambda: {"errors": {"jax": "ImportError: no jaxlib\nmore"}})
    found = _doctor.examined()
    lines = _doctor.worded(found).splitlines()
    width = max(len(name) for name in (*found["packages"], *found["environment"], "[tensorboard]"))
    assert f"{'[parquet]':<{width}}  needs pyarrow: pip install 'tallax[parquet]'" in lines
    assert f"{'jaxlib':<{width}}  not installed" in lines
    at = lines.index(f"{'jax':<{width}}  FAILED: ImportError: no jaxlib")
    assert lines[at + 1] == " " * (width + 2) + "more"

    def unknown(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", unknown)
    monkeypatch.setattr(metadata, "requires", unknown)
    found = _doctor.examined()
    assert found["extras"] == {}
    assert "not installed: a source tree, whose extras are not known" in _doctor.worded(found)


def test_python_m_tallax_is_the_command():
    """`python -m tallax` runs the command of that very Python, as one does where PATH leads elsewhere."""
    command = [sys.executable, "-W", "error", "-m", "tallax", "--version"]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert ended.stdout == f"tallax {tallax.__version__}\n", ended.stderr
