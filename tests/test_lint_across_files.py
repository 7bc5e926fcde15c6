# SPDX-License-Identifier: Apache-2.0
"""The linter uses the other files of a project."""

import pathlib

import pytest

from tallax.lint import Config, lint

BASE = """\
import jax.numpy as jnp
from flax import nnx as nn


class Count(nn.Variable):
    pass


class Base(nn.Module):
    def __init__(self):
        self.count = Count(jnp.array(0))
        self.calls = 0
"""
# Mentions nnx nowhere: that it is about a module only the other file tells.
DERIVED = """\
from {where} import Base as Parent


class Derived(Parent):
    def __call__(self, x):
        self.count += 1
        self.calls += 1
        return x
"""


def written(folder: pathlib.Path, **files: str) -> pathlib.Path:
    """Writes a project, `a__b` standing for `a/b.py`, and returns its folder."""
    (folder / "pyproject.toml").write_text("[project]\n")
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def codes(*paths: pathlib.Path) -> list[tuple[str, int, str]]:
    """Returns file, line and code of each finding."""
    report = lint(paths, Config())
    assert not report.problems
    return [(pathlib.Path(f.path).name, f.line, f.code) for f in report.findings]


FOUND = [("derived.py", 6, "TLX002"), ("derived.py", 7, "TLX007")]


@pytest.mark.parametrize("where", ["base", "pkg.base", ".base", "pkg", "."])
def test_a_base_in_another_file(tmp_path, where):
    """A class is judged by what its base in another file declares, however that is imported; also re-exported."""
    package = {"pkg__base": BASE, "pkg__init": "", "pkg__derived": DERIVED.format(where=where)}
    root = written(tmp_path, **package)
    (root / "pkg" / "init.py").rename(root / "pkg" / "__init__.py")
    (root / "pkg" / "__init__.py").write_text("from .base import Base\n")
    if where == "base":
        (root / "pkg" / "__init__.py").unlink()
    assert codes(root) == FOUND


@pytest.mark.parametrize("folder", ["", "src/"])
def test_below_src(tmp_path, folder):
    """Absolute imports start from the project's root or its `src`."""
    root = written(tmp_path)
    for name, text in {"pkg/base": BASE, "pkg/models/derived": DERIVED.format(where="pkg.base")}.items():
        path = root / folder / (name + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert codes(root) == FOUND


def test_a_single_file(tmp_path):
    """A file that is handed in alone, as by pre-commit, is judged with what it imports; only it is reported."""
    base = BASE + "\n    def __call__(self, x):\n        self.count += 1\n        return x\n"
    root = written(tmp_path, base=base, derived=DERIVED.format(where="base"))
    assert codes(root / "derived.py") == FOUND


def test_a_circle(tmp_path):
    """Files that import from each other are read once, and what they can't tell is left alone."""
    first = "from flax import nnx\nfrom second import B\n\n\nclass A(B, nnx.Module):\n    pass\n"
    second = "from flax import nnx\nfrom first import A\n\n\nclass B(A):\n    def f(self):\n        self.x += 1\n"
    assert codes(written(tmp_path, first=first, second=second)) == []


def test_an_attribute_taken_away(tmp_path):
    """A subclass that overwrites a Variable is reported there; where it skips the base's `__init__`, there is none."""
    lines = [
        "from base import Base, jnp, nn",
        "class Array(Base):",
        "    def __init__(self):",
        "        super().__init__()",
        "        self.count = jnp.zeros(())  # and this",
        "    def __call__(self):",
        "        self.count += 1",
        "class Without(Base):",
        "    def __init__(self):",
        "        self.other = 1",
        "    def __call__(self):",
        "        self.count += 1",
        "class Property(Base):",
        "    @property",
        "    def kind(self): return 1",
        "    def __call__(self):",
        "        self.kind += 1",
        "class Kept(Base):",
        "    def __init__(self):",
        "        super().__init__()",
        "        self.other = 1",
        "    def __call__(self):",
        "        self.count += 1  # this one",
    ]
    root = written(tmp_path, base=BASE, derived="\n".join(lines) + "\n# nnx\n")
    marked = [number for number, line in enumerate(lines, 1) if "  # " in line]
    assert codes(root) == [("derived.py", number, "TLX002") for number in marked]


def test_a_list_that_is_filled(tmp_path):
    """The elements of a list have the type of the appended object, by any name of the Variable's type."""
    text = """\
from flax.nnx import List, Module, Param as P
import jax.numpy as jnp


class Model(Module):
    def __init__(self):
        many = []
        for k in range(3):
            many.append(P(jnp.ones(k)))
        self.many = List(many)

    def __call__(self, x):
        return sum(each.value for each in self.many) + self.many[0].value  # nnx
"""
    assert codes(written(tmp_path, model=text)) == [("model.py", 13, "TLX006"), ("model.py", 13, "TLX006")]


MAKER = """\
import jax.numpy as jnp
from flax import nnx




def made():
    return nnx.Variable(jnp.array(0, dtype=jnp.int32))
"""
COUNTING = """\
from flax import nnx
from maker import made


class Seen(nnx.Module):
    def __init__(self):
        self.tokens = made()

    def __call__(self, tokens):
        self.tokens[...] += tokens.size
        return tokens
"""


def test_objects_of_another_file_are_not_reported_at_its_line(tmp_path):
    """The call that makes a counter stands in another file, whose line numbers mean nothing in this one."""
    assert codes(written(tmp_path, maker=MAKER, model=COUNTING)) == []
    inline = COUNTING.replace("from maker import made\n", MAKER)
    assert [code for _, _, code in codes(written(tmp_path, model=inline))] == ["TLX004"]


CHECKED_OUT = """\
import jax
import optax
from flax import nnx, struct


@struct.dataclass
class TrainState:
    model: nnx.BatchNorm


@jax.jit
def step(state: TrainState, x):
    return state.model(x)


@nnx.jit
def train(model, optimizer: optax.GradientTransformation, x):
    loss, grads = nnx.value_and_grad(lambda m: m(x))(model)
    optimizer.update(grads)


def optimizer_of(model):
    return nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
"""


def test_libraries_beside_the_project(tmp_path):
    """A finding is the same if Flax and optax stand in the project's own folders, as in a checkout of Flax."""
    for name in ("alone", "beside"):
        (tmp_path / name).mkdir()
        written(tmp_path / name, train=CHECKED_OUT)
    libraries = {
        "flax/__init__.py": "",
        "flax/struct.py": "def dataclass(cls):\n    return cls\n",
        "src/optax/__init__.py": "from optax._src.base import GradientTransformation as GradientTransformation\n",
        "src/optax/_src/base.py": "class GradientTransformation:\n    pass\n",
    }
    for name, text in libraries.items():
        (tmp_path / "beside" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "beside" / name).write_text(text)
    alone, beside = codes(tmp_path / "alone" / "train.py"), codes(tmp_path / "beside" / "train.py")
    assert alone == beside == [("train.py", 12, "TLX008"), ("train.py", 19, "TLX013")]
