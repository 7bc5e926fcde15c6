# SPDX-License-Identifier: Apache-2.0
"""The architecture: which file may import which, and the names that users see."""

import ast
import functools
import importlib
import pathlib
import re
import subprocess
import sys

import pytest

import tallax

SOURCE = pathlib.Path(tallax.__file__).parent
# Lowest first. A file or package imports only from lines above its own.
LAYERS = [
    {"_arrays", "_child_process", "_lazy", "_quick_compiles", "_version", "lint", "runs"},
    {"_errors"},
    {"_display"},
    {"_containers", "_uint64"},
    {"_mesh_axes"},
    {"variables"},
    {"_module"},
    {"_walk", "_backward_observers"},
    {"counters", "schedules", "statistics", "_differentiation_checks"},
    {"differentiation", "reading", "replicas"},
    {"watching"},
    {"clipping", "compiling", "injected_schedules", "sinks"},
    {"logging"},
    {"checkpoints"},
    {"interop"},
    {"checking", "_doctor"},
    {"learning"},
    {"cli", "pytest_plugin"},
    {"__init__", "__main__"},
]
WITHOUT_JAX = {"_child_process", "_lazy", "lint", "runs"}
SINK_METHODS = {"write", "close"}  # documented by `tallax.sinks.Sink`
FILES = sorted(SOURCE.rglob("*.py"))
# The `__init__` of tallax and of its sinks import by name, at first use: these are their imports.
STUBS = sorted(SOURCE.rglob("*.pyi"))


def module_of(path: pathlib.Path) -> str:
    """Returns the dotted name of a file's module, such as `tallax.runs._show`."""
    parts = path.relative_to(SOURCE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def part_of(module: str) -> str:
    """Returns the file or package directly below `tallax` that a module belongs to."""
    return module.split(".")[1] if "." in module else "__init__"


MODULES = {module_of(path) for path in FILES}


def is_exercise(path: pathlib.Path) -> bool:
    """Returns whether a file is one that learners copy: it stands alone, as a program of theirs."""
    return path.stem in ("starter", "start", "solution", "with_tallax") and "exercise" in str(path.parent)


def within_type_checking(tree: ast.AST) -> set[ast.AST]:
    """Returns what only type checkers read."""
    blocks = (node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test))
    return {inner for block in blocks for statement in block.body for inner in ast.walk(statement)}


@functools.cache
def names_in(path: pathlib.Path) -> frozenset[str]:
    """Returns the dotted names that a file imports, at its top or within functions."""
    found = set()
    tree = ast.parse(path.read_text())
    skipped = within_type_checking(tree)
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


def imports_of(path: pathlib.Path) -> set[str]:
    """Returns the modules of tallax that a file imports, but for the packages around it."""
    found = set()
    for name in names_in(path):
        while name and name not in MODULES:
            name = name.rpartition(".")[0]
        found.add(name)
    own = module_of(path)
    return {name for name in found - {"", "tallax"} if not f"{own}.".startswith(f"{name}.")}


def test_every_file_has_a_layer():
    """A new file or package is put in a layer, once."""
    parts = [part for layer in LAYERS for part in layer]
    assert len(parts) == len(set(parts))
    assert {part_of(module) for module in MODULES} | {"__init__"} == set(parts)


def test_imports_point_down():
    """Every file imports from the layers below it, or from its own package."""
    level = {part: k for k, layer in enumerate(LAYERS) for part in layer}
    upward = [
        f"{module_of(path)} imports {other}"
        for path in FILES
        for other in {part_of(module) for module in imports_of(path)} - {part_of(module_of(path))}
        if level[other] >= level[part_of(module_of(path))]
    ]
    assert upward == []
    assert len(FILES) > 100  # `test_no_import_cycle_at_any_depth` asserts that imports are found


def test_no_import_cycle_at_any_depth():
    """Within packages too, and counting imports within functions, some order of all modules has every import before."""
    above = {module_of(path): imports_of(path) for path in FILES}
    assert sum(map(len, above.values())) > 300  # it finds imports
    while above:
        free = {name for name, others in above.items() if not others & above.keys()}
        assert free, f"these import each other: {sorted(above)}"
        above = {name: others for name, others in above.items() if name not in free}


@pytest.mark.parametrize("part", sorted(WITHOUT_JAX))
def test_parts_without_jax_do_not_import_jax(part):
    """The linter and the viewing of runs import no JAX, and nothing of tallax that could."""
    files = [path for path in FILES if part_of(module_of(path)) == part]
    assert files
    for path in files:
        assert not {name.partition(".")[0] for name in names_in(path)} & {"jax", "flax", "optax", "orbax"}, path
        assert {part_of(module) for module in imports_of(path)} <= {part}, path


def test_no_internals():
    """No jax._src and no private module of Flax or optax; one file family subclasses nnx.Variable."""
    for path in FILES:
        text = path.read_text()
        if part_of(module_of(path)) != "lint":  # which has source as text
            assert not re.search(r"\b(jax|flax|optax)(\.\w+)*\._(?!_)\w+", text), path
            assert not re.search(r"class \w+\(.*\bVariable\b", text) or path.name == "_base.py", path
        # The exercise's files become their readers' own.
        assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n") or is_exercise(path), path


def test_no_two_modules_share_a_name_without_sharing_a_job():
    """A name leads to one file, but for the two halves of the exceptions, of which one imports no JAX."""
    named: dict[str, list[str]] = {}
    for module in {module_of(path) for path in FILES if not is_exercise(path)} - {"tallax"}:
        named.setdefault(module.rpartition(".")[2], []).append(module)
    shared = {name: modules for name, modules in named.items() if len(modules) > 1}
    assert shared.keys() == {"__main__", "_errors"}


def listed(stub: pathlib.Path) -> dict[str, str]:
    """Returns the names that a stub lists, and the module of each."""
    found = {}
    for node in ast.parse(stub.read_text()).body:
        assert isinstance(node, ast.ImportFrom)
        (alias,) = node.names  # one on a line, which is how `tallax._lazy` reads it
        assert alias.name == alias.asname
        assert alias.name not in found
        found[alias.name] = node.module
    return found


@pytest.mark.parametrize("stub", STUBS, ids=[str(stub.relative_to(SOURCE)) for stub in STUBS])
def test_the_stub_is_the_surface(stub):
    """Every name that a stub lists is there, documented, and given by `*`; no other public name is."""
    package = importlib.import_module(module_of(stub))
    names = listed(stub)
    for name, home in names.items():
        thing = getattr(package, name)
        assert home == package.__name__ or thing is getattr(importlib.import_module(home), name)
        assert thing.__doc__ or name == "__version__"
        if isinstance(thing, type):
            for member_name, member in vars(thing).items():
                if callable(member) and not member_name.startswith("_") and member_name not in SINK_METHODS:
                    assert member.__doc__, f"{name}.{member_name}"
    public = {name for name in names if not name.startswith("_")}
    starred: dict[str, object] = {}
    exec(f"from {package.__name__} import *", starred)
    assert starred.keys() - {"__builtins__"} == public
    assert set(dir(package)) >= set(names)
    with pytest.raises(AttributeError, match=rf"^module '{package.__name__}' has no attribute 'stat'$"):
        _ = package.stat


LOADED = {
    "import tallax": set(),
    "from tallax import Counter, StepCounter": {"_errors", "_uint64", "_module", "variables", "counters"},
    "from tallax import statistics": {"_errors", "_uint64", "_module", "variables", "statistics"},
    "from tallax.sinks import as_sink": {"_errors", "sinks"},
    "from tallax import ScheduledValue": {"_errors", "_uint64", "_module", "variables", "schedules"},
}
ALWAYS = {"_containers", "_walk", "_lazy", "_display", "_arrays", "_mesh_axes", "_differentiation_checks", "runs"}


def test_imports_are_found_at_every_depth():
    """A program imports only the modules that it uses; `import tallax` does not import JAX."""
    # One process for all, since JAX takes a second to import; each statement finds tallax as if it were the first.
    code = f"""
import sys
for statement in {list(LOADED)}:
    for name in [name for name in sys.modules if name.partition('.')[0] == 'tallax']:
        del sys.modules[name]
    exec(statement, {{}})
    print(*(m for m in sys.modules if m == 'jax' or m.startswith('tallax.')))
"""
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    for (statement, loaded), line in zip(LOADED.items(), printed.splitlines(), strict=True):
        parts = {name.split(".")[1] for name in line.split() if name != "jax"}
        assert parts - ALWAYS == loaded, statement
        assert loaded or "jax" not in line.split()


def test_names_may_be_asked_for_within_a_trace():
    """No module makes arrays when it is imported: in a trace these would be tracers that outlive it."""
    code = """
import jax, tallax

def f(x):
    for name in dir(tallax):
        getattr(tallax, name)
    return x

print(len(jax.make_jaxpr(f)(1.0).eqns))
with jax.checking_leaks():
    jax.jit(f)(1.0)
"""
    ended = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout == "0\n"
