# SPDX-License-Identifier: Apache-2.0
"""The architecture: what may import what, and what users see."""

import ast
import pathlib
import re
import subprocess
import sys

import pytest

import tallax

SOURCE = pathlib.Path(tallax.__file__).parent
# Lowest first. A file or package imports only from lines above its own.
LAYERS = [
    {"_lazy", "_placement", "_version"},
    {"_errors"},
    {"_notebooks"},
    {"_containers", "_factory", "_limbs"},
    {"_replicas"},
    {"_variables", "_module"},
    {"counters", "schedules", "statistics", "_differentiable"},
    {"differentiation", "reading", "replicas"},
    {"compiling", "optimizers", "sinks"},
    {"logging"},
    {"checkpoints"},
    {"interop"},
    {"checking", "_doctor"},
    {"__init__"},
    {"__main__"},
]
FILES = sorted(SOURCE.rglob("*.py"))


def part_of(path: pathlib.Path) -> str:
    """Returns the name of the file or package directly below `tallax` that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported(path: pathlib.Path) -> set[str]:
    """Returns the parts of tallax that a file imports, at its top or within functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            module = node.module or ""
            found |= {f"{module}.{alias.name}" for alias in node.names} if module == "tallax" else {module}
    return {name.split(".")[1] for name in found if name.startswith("tallax.")}


def test_every_file_has_a_layer():
    """A new file is put in a layer, once."""
    parts = [part for layer in LAYERS for part in layer]
    assert len(parts) == len(set(parts))
    assert {part_of(path) for path in FILES} == set(parts)


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(SOURCE)) for path in FILES])
def test_imports_point_down(path):
    """A file imports from the layers below it, or from its own package."""
    level = {part: k for k, layer in enumerate(LAYERS) for part in layer}
    own = part_of(path)
    for other in imported(path) - {own}:
        assert level[other] < level[own], f"{own} imports {other}"


@pytest.mark.parametrize("path", FILES, ids=[str(path.relative_to(SOURCE)) for path in FILES])
def test_no_internals(path):
    """No jax._src and no private module of Flax or optax; one file family subclasses nnx.Variable."""
    text = path.read_text()
    assert not re.search(r"\b(jax|flax|optax)(\.\w+)*\._(?!_)\w+", text)
    assert not re.search(r"class \w+\(.*Variable", text) or path.name == "_item.py"
    # The exercise's files become their readers' own.
    assert text.startswith("# SPDX-License-Identifier: Apache-2.0\n") or path.parts[-2:-1] == ("exercise",)


def test_the_surface():
    """Every public name has a docstring, and is one of these."""
    names = {name for name in dir(tallax) if name[0].isalpha()} - {"TYPE_CHECKING", "importlib"}
    submodules = {
        "checking",
        "checkpoints",
        "compiling",
        "counters",
        "differentiation",
        "interop",
        "logging",
        "optimizers",
        "reading",
        "replicas",
        "schedules",
        "sinks",
        "statistics",
    }
    assert names - submodules == {
        "Buffer",
        "CannotCheckError",
        "CheckFailedError",
        "CheckpointError",
        "Checkpoints",
        "CompiledStep",
        "ClipByGlobalNormState",
        "ClipCounts",
        "Counter",
        "HeldError",
        "Logger",
        "InvalidTypeError",
        "InvalidValueError",
        "MissingExtraError",
        "Module",
        "Reading",
        "ReplacedVariableError",
        "ReplicasError",
        "RestoreError",
        "RestoreReport",
        "Run",
        "RunError",
        "RunInUseError",
        "Scheduled",
        "SinkError",
        "StepCounter",
        "StructureError",
        "TallaxError",
        "TraceError",
        "TracedReadError",
        "assert_replicated",
        "checkpoint_target",
        "clip_by_global_norm",
        "clip_counts",
        "collect",
        "combine_replicas",
        "compile_step",
        "counter_after_n_calls",
        "from_checkpoint",
        "grad",
        "per_replica",
        "replica_specs",
        "restore",
        "save",
        "scheduled",
        "snapshot",
        "statecheck",
        "to_checkpoint",
        "value_and_grad",
    }
    public = [getattr(tallax, name) for name in names - submodules] + [
        getattr(package, name)
        for package in (tallax.statistics, tallax.interop)
        for name in vars(package)
        if name[0].isalpha()
    ]
    for thing in public:
        assert thing.__doc__
        for name, member in vars(thing).items():
            if callable(member) and not name.startswith("_"):
                assert member.__doc__, f"{thing.__name__}.{name}"


def test_what_type_checkers_read_is_what_there_is():
    """The imports in `if TYPE_CHECKING` are the tables by which names are found, and `*` gives what they list."""
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    declared = [(node.module, alias.name) for node in block.body for alias in node.names]
    assert all(alias.asname == alias.name for node in block.body for alias in node.names)
    assert len(declared) == len(set(declared))
    assert {name: module for module, name in declared if module != "tallax"} == tallax._HOMES
    assert {name for module, name in declared if module == "tallax"} == tallax._MODULES
    starred = {}
    exec("from tallax import *", starred)
    public = tallax._HOMES.keys() - {"__version__"}
    assert starred.keys() - {"__builtins__"} == public | {"interop", "sinks", "statistics"}
    with pytest.raises(AttributeError, match=r"^module 'tallax' has no attribute 'stat'$"):
        _ = tallax.stat


@pytest.mark.parametrize(
    ("statement", "loaded"),
    [
        ("import tallax", set()),
        (
            "from tallax import Counter, StepCounter",
            {"_containers", "_errors", "_limbs", "_module", "_variables", "counters"},
        ),
        ("from tallax import statistics", {"_containers", "_errors", "_limbs", "_module", "_variables", "statistics"}),
        ("import tallax.sinks", {"_errors", "sinks"}),
        ("from tallax import Scheduled", {"_containers", "_errors", "_limbs", "_module", "_variables", "schedules"}),
    ],
)
def test_what_is_imported(statement, loaded):
    """A program waits for the import of what it uses; by itself, tallax imports not even JAX."""
    code = f"import sys\n{statement}\nprint(*(m for m in sys.modules if m == 'jax' or m.startswith('tallax.')))"
    names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    parts = {name.split(".")[1] for name in names if name != "jax"}
    assert parts - {"_lazy", "_notebooks", "_placement", "_replicas", "_differentiable"} == loaded
    assert loaded or "jax" not in names


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


@pytest.mark.parametrize("package", ["tallax.lint", "tallax.runs"])
def test_packages_without_jax(package):
    """What looks at source or at runs imports no JAX and no tallax, and nothing in a circle."""
    above: dict[str, set[str]] = {}
    for path in sorted((SOURCE.parent / package).rglob("*.py")):
        relative = path.relative_to(SOURCE.parent).with_suffix("")
        parts = relative.parts[:-1] if relative.name == "__init__" else relative.parts
        found = above.setdefault(".".join(parts), set())
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith(package):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
                found |= {
                    name if (SOURCE.parent / (name.replace(".", "/") + ".py")).exists() else node.module
                    for name in names
                }
            elif isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not {str(m).partition(".")[0] for m in modules} & {"jax", "flax", "optax", "tallax"}, path
    # Take away what imports nothing that is left; a circle is what stays.
    while above:
        free = {name for name, names in above.items() if not names & above.keys() - {name}}
        assert free, f"these import each other: {sorted(above)}"
        above = {name: names for name, names in above.items() if name not in free}
