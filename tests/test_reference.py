# SPDX-License-Identifier: Apache-2.0
"""The API reference is complete, and names nothing that is not there."""

import functools
import importlib
import pathlib
import re
import types

import tallax

PAGES = pathlib.Path(__file__).parents[1] / "docs" / "api"
DOCUMENTED = [
    name for page in PAGES.glob("*.md") for name in re.findall(r"^::: (\S+)$", page.read_text(), flags=re.MULTILINE)
]
NOT_OURS = {"TYPE_CHECKING", "Any"}  # what an import line needs
INTERNAL = {
    "tallax.sinks.as_sink",
    "tallax.checking.RULES",
    "tallax.checking.RESUME_RULES",
}  # for other parts of tallax; not for users


def public(module: str) -> set[str]:
    """Returns the full names that a user of a module finds in it, without its submodules."""
    found = importlib.import_module(module)
    names = {name for name in dir(found) if not name.startswith("_") and name not in NOT_OURS}
    things = {name: getattr(found, name) for name in names}
    return {f"{module}.{name}" for name, thing in things.items() if not isinstance(thing, types.ModuleType)} - INTERNAL


def test_every_public_name_is_in_the_reference():
    """Every public name of `tallax` and its submodules is on a page of docs/api."""
    namespaces = ("tallax", "tallax.statistics", "tallax.sinks", "tallax.interop", "tallax.checking", "tallax.watching")
    twice = {"tallax.checking.statecheck", "tallax.checking.resumecheck"}
    twice |= {f"tallax.watching.{name}" for name in ("watch", "Watch", "SummaryResult")}
    wanted = functools.reduce(set.union, map(public, namespaces)) - twice
    assert wanted - set(DOCUMENTED) == set()


def test_the_reference_names_existing_objects():
    """Each name on a page can be imported, has a docstring, and stands on one page."""
    assert len(DOCUMENTED) == len(set(DOCUMENTED)) > 70
    for name in DOCUMENTED:
        module, _, attribute = name.rpartition(".")
        assert getattr(importlib.import_module(module), attribute).__doc__, name


def test_the_pages_are_on_the_site():
    """mkdocs.yml leads to every page."""
    navigation = (PAGES.parents[1] / "mkdocs.yml").read_text()
    pages = [page.name for page in PAGES.glob("*.md")]
    assert len(pages) > 5
    assert [page for page in pages if f"api/{page}" not in navigation] == []


def test_all_lists_existing_names():
    """`from tallax import *` brings every name on the pages, and the seven modules that users write the names of."""
    assert {f"tallax.{name}" for name in tallax.__all__} == public("tallax") | {
        "tallax.checking",
        "tallax.interop",
        "tallax.lint",
        "tallax.runs",
        "tallax.sinks",
        "tallax.statistics",
        "tallax.watching",
    }
    assert all(hasattr(tallax, name) for name in tallax.__all__)
