# SPDX-License-Identifier: Apache-2.0
"""Facts that are written in several files agree: the commands of CI, the version, the limits of documents."""

import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import tallax

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def commands_of(target):
    """Returns the commands of a target of the Makefile, which come before the next empty line."""
    recipe = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert recipe
    return [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]


def makes_of_ci():
    return re.findall(r"^\s*(make .*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)


def test_the_hooks_run_the_same_commands_as_lint():
    """pre-commit runs the commands of `make lint`, with the same tools, in the same order."""
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    commands = commands_of("lint")
    assert len(commands) >= 5
    assert [hook["entry"] for hook in hooks] == commands
    assert all(hook["pass_filenames"] is False and hook["language"] == "system" for hook in hooks)


def test_the_workflow_runs_the_same_commands_as_ci():
    """On the oldest Python all of `.ci/run`, and on the newest what that runs there; each action by its commit."""
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]
    runs = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    *all_of_it, on_the_newest = makes_of_ci()
    assert runs["oldest"] == all_of_it
    assert on_the_newest.startswith("make dist-check PYTHON=")
    assert runs["newest"] == ["make dist-check"]
    pythons = {name: job["steps"][1]["with"]["python-version"] for name, job in jobs.items()}
    assert pythons["oldest"] == PROJECT["requires-python"].removeprefix(">=")
    assert f"Programming Language :: Python :: {pythons['newest']}" == PROJECT["classifiers"][-3]
    for job in jobs.values():
        for step in job["steps"]:
            assert re.fullmatch(r"[\w/-]+@[0-9a-f]{40}", step.get("uses", "a/b@" + "0" * 40))


def test_the_citation_is_of_this_version():
    """As in pyproject.toml, licence and all."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (PROJECT["version"], PROJECT["license"])
    assert citation["keywords"] == PROJECT["keywords"]


def test_classifiers():
    """Typed, on any system; the licence is an SPDX expression, beside which PyPI takes no classifier of one."""
    assert {"Typing :: Typed", "Operating System :: OS Independent"} <= set(PROJECT["classifiers"])
    assert PROJECT["license"] == "Apache-2.0"
    assert not [name for name in PROJECT["classifiers"] if name.startswith("License ::")]


def test_the_changelog():
    """The version in pyproject.toml has a dated section, below what is not yet released."""
    unreleased, released, *_ = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1:]
    assert unreleased.startswith("[Unreleased]\n")
    assert re.match(rf"\[{re.escape(PROJECT['version'])}\] - \d{{4}}-\d\d-\d\d\n", released)
    assert "\n### Added\n\n- " in released


def test_the_version():
    """`tallax.__version__` is that of pyproject.toml, or says that it is a source tree; `import *` leaves it alone."""
    installed = any(metadata.distributions(name="tallax"))
    assert tallax.__version__ == (PROJECT["version"] if installed else "0+source")
    assert "__version__" not in tallax.__all__


def test_the_sdist_is_whole():
    """All that git keeps at the top of the repository is in the sdist, so that its tests run from it."""
    if not (ROOT / ".git").exists():
        pytest.skip("no repository: `.ci/dist-check` runs the tests from the sdist")
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    always = {".gitignore", "pyproject.toml"}  # what hatchling takes along by itself
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = set(project["tool"]["hatch"]["build"]["targets"]["sdist"]["include"])
    assert {name.split("/")[0] for name in tracked} == wanted | always


def test_contributing_is_short():
    """Under 60 lines, and every target that it names is one."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert text.count("\n") < 60
    targets = set(re.findall(r"^make ([a-z-]+)", text, re.MULTILINE)) | set(re.findall(r"`make\s([a-z-]+)", text))
    assert {"quick", "test", "lint", "constraints"} <= targets
    made = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert targets - made == set()
