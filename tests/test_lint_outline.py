# SPDX-License-Identifier: Apache-2.0
"""Files that the linter looks into without judging them: what they bind, taken in name by name."""

import ast
import gc
import pathlib
import textwrap

import flax
import pytest

from tallax.lint import Config, lint
from tallax.lint._index import File
from tallax.lint._outline import Outline, outlined
from tallax.lint._project import Tree
from tallax.lint._source import Source
from tallax.lint._syntax_walk import walk

FLAX = pathlib.Path(flax.__file__).parent


def outline_of(text: str) -> File:
    found = outlined(Source("m.py", textwrap.dedent(text)), "m", "")
    assert found is not None
    return found


def bound(file: File) -> dict[str, list[tuple[str, int]]]:
    return {name: [(b.how, b.line) for b in bindings] for name, bindings in file.bindings.items()}


@pytest.mark.parametrize("path", sorted(FLAX.rglob("*.py"))[::6], ids=lambda path: path.name)
def test_the_outline_binds_the_same_names_as_the_file(path):
    """Whatever is asked for is bound as in the whole file, at the same lines; of real files."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    whole = File(tree, "m.py", text, "m", "")
    walk(whole, tree)
    outline = outlined(Source("m.py", text), "m", "")
    assert outline is not None
    assert all(name in outline.bindings and outline.bindings[name] for name in whole.bindings)
    assert bound(outline) == bound(whole)
    assert sorted(cls.name for cls in outline.classes) == sorted(cls.name for cls in whole.classes)


def test_nothing_is_parsed_before_it_is_asked_for():
    """A function that does not parse is in nobody's way, and its name is unknown."""
    outline = outline_of(
        """\
        import os
        @decorated(
            1
        )
        def broken(:
            pass
        # a comment
        async def fine():
            return 2
        LIMIT = 3
        """
    )
    assert type(outline) is Outline
    assert [*outline.bindings] == ["os", "LIMIT"]
    assert "broken" not in outline.bindings
    assert [b.line for b in outline.bindings["fine"]] == [8]
    assert [*outline.bindings] == ["os", "LIMIT", "fine"]


def test_a_name_that_is_bound_twice():
    """A function below an assignment of the same name is found, in the order of lines."""
    outline = outline_of(
        """\
        f = None
        def f(): ...
        class f: ...
        f = f()
        """
    )
    assert [(b.how, b.line) for b in outline.bindings["f"]] == [("value", 1), ("def", 2), ("def", 3), ("value", 4)]


def test_text_at_the_margin():
    """If a string within a function touches the margin, the whole file is taken."""
    outline = outline_of('def f():\n    """Docs,\nat the margin."""\n    return 1\n')
    assert type(outline) is File
    assert bound(outline) == {"f": [("def", 1)]}


def test_files_that_do_not_parse():
    assert outlined(Source("m.py", "def f(): ...\nx = = 1\n"), "m", "") is None


TEMPLATE = '''\
from base import Base

TEMPLATE = """
class Derived(Base):
    def __call__(self, x):
        self.count += 1
        return x
"""


class Real(Base):
    def __call__(self, x):
        self.count += 1
        return x
'''
BASE = """\
import jax.numpy as jnp
from flax import nnx
import late


class Base(nnx.Module):
    def __init__(self):
        self.count = nnx.Variable(jnp.array(0))


def use():
    return late.Real()(0)
"""


def test_a_file_that_is_judged_after_all(tmp_path):
    """A file that does not mention nnx is judged for what it derives from: all of it, but not what its strings say."""
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "base.py").write_text(BASE)
    (tmp_path / "late.py").write_text(TEMPLATE)
    report = lint([tmp_path], Config())
    assert [(pathlib.Path(f.path).name, f.line) for f in report.findings] == [("late.py", 13)]

    tree = Tree()
    importer = tree.add(Source(str(tmp_path / "base.py"), BASE))
    assert importer is not None
    looked_into = tree.module("late", importer)
    assert isinstance(looked_into, Outline)
    assert not looked_into.classes
    assert tree.add(Source(str(tmp_path / "late.py"), TEMPLATE)) is looked_into
    assert [cls.name for cls in looked_into.classes] == ["Real"]


def test_a_broken_file_that_is_judged_after_all(tmp_path):
    """It is said that the file does not parse, though its outline did."""
    (tmp_path / "pyproject.toml").write_text("")
    (tmp_path / "base.py").write_text(BASE)
    broken = TEMPLATE + "\n\ndef broken(:\n    pass\n"
    (tmp_path / "late.py").write_text(broken)
    tree = Tree()
    importer = tree.add(Source(str(tmp_path / "base.py"), BASE))
    assert importer is not None
    assert tree.module("late", importer) is not None
    source = Source(str(tmp_path / "late.py"), broken)
    assert tree.add(source) is None
    assert [problem.line for problem in source.problems] == [17]
    assert [problem.line for problem in lint([tmp_path], Config()).problems] == [17]


INSTALLED = {
    "one/__init__.py": "",
    "one/typing.py": "from one.base import Base\n",
    "one/base.py": "from flax import nnx\n\n\nclass Base(nnx.Module):\n    ...\n",
    "one/model.py": "import two\nfrom typing import Any\nfrom one import base\n",
    "two.py": "from flax import nnx\n",
    "typing.py": "",
}


def test_where_modules_are_looked_for(tmp_path):
    """Packages that are installed side by side belong to many projects, and `typing` in a package is Python's."""
    site = tmp_path / "site-packages"
    for name, text in INSTALLED.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    tree = Tree()
    model = tree.add(Source(str(site / "one" / "model.py"), INSTALLED["one/model.py"]))
    assert model is not None
    assert tree.path_of("one.base", model) == str(site / "one" / "base.py")
    assert tree.path_of("one", model) == str(site / "one" / "__init__.py")
    assert tree.path_of("two", model) is None
    assert tree.path_of("typing", model) is None
    assert tree.path_of("one.typing", model) == str(site / "one" / "typing.py")


def test_scripts_see_the_files_beside_them(tmp_path):
    """Of a folder that is no package, Python looks into the folder first, whatever else is called so."""
    for name in ("train.py", "queue.py", "model.py"):
        (tmp_path / name).write_text("")
    tree = Tree()
    script = tree.add(Source(str(tmp_path / "train.py"), ""))
    assert script is not None
    assert tree.path_of("queue", script) == str(tmp_path / "queue.py")
    assert tree.path_of("model", script) == str(tmp_path / "model.py")


def test_a_run_leaves_nothing_to_the_collector():
    """Trees are freed at once: searching them for garbage would take longer than the rules."""
    gc.collect()
    gc.disable()
    try:
        report = lint([FLAX / "nnx" / "nn"], Config())
        left = gc.collect()
    finally:
        gc.enable()
    assert left < 5_000  # of some 60,000 nodes
    assert len(report.sources) > 5


def test_the_body_of_a_class_is_parsed_on_demand():
    """Its bases are known from its head; its methods and nodes appear, at their lines, when one is asked for."""
    text = (
        "from flax import nnx\n\n\n@nnx.jit\nclass A(\n    nnx.Module,\n):\n"
        "    x = 1\n\n    def f(self):\n        self.y = nnx.Param(1)\n"
    )
    file = outline_of(text)
    (binding,) = file.bindings["A"]
    cls = binding.what
    assert [type(node) for node in cls.node.body] == [ast.Pass]
    assert [ast.unparse(base) for base in cls.node.bases] == ["nnx.Module"]
    assert (cls.node.lineno, cls in file.classes) == (5, True)
    method = cls.method("f")
    assert (method.name, method.node.lineno, cls.node.end_lineno) == ("A.f", 10, 11)
    assert file.parent_of(method.node) is cls.node
    assert [call.lineno for call in method.of(ast.Call)] == [11]
    file.release()


def test_a_class_that_nobody_asks_for_is_never_parsed():
    """At the end of a run too."""
    file = outline_of("class A:\n    def f(self): pass\n")
    cls = file.bindings["A"][0].what
    node = cls.node
    file.release()
    assert [type(inner) for inner in node.body] == [ast.Pass]
