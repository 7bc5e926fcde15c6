# SPDX-License-Identifier: Apache-2.0
"""Fixtures and markers that all tests share."""

import gc
import pathlib

import jax
import pytest


@pytest.fixture(scope="module")
def _programs_of_a_module():
    """Drops the programs of a module after its last test: hundreds that no other module runs again."""
    yield
    jax.clear_caches()


@pytest.fixture
def quick_compilation(_programs_of_a_module):
    """Programs that are compiled once and run for a moment. The caches stay: the tests of a module share programs."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture
def as_users_run_it(quick_compilation):
    """JAX's own promotion of dtypes and ranks, and quick compilation: checks compile much and run little."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# `make test` has six minutes on two cores, without compiled programs. These cases take too long for it: CI runs them as
# thorough tests. After the semicolon is the quick sibling of each:
#   test_programs        random programs beyond 12, and two of three writes in each branch; 12 programs, every branch
#   test_processes       two processes of two devices, four processes, explicit meshes; two processes of one device
#   test_demo            the finished run once more, Ctrl-C; one run with its table and plots, Ctrl-C before it begins
#   test_differentiation half of filters x modes, and four of six modes of the longest; every filter, every mode
#   test_matrix          reads in a derivative of half of cells x ways to make a model; every cell, either way
#   test_statistic_laws  dtypes of the types other than one; two dtypes of every type
#   test_log_histogram   half of forms x lengths x sizes; every form with every length and size
#   test_host_numbers    spellings under x64 other than 64-bit arrays; these two, and all without x64
#   test_host_actions    four of six seeds; two
#   test_learn*          start files of nine of 12 exercises, four of eight tricks; every solution, the other tricks
#   test_check_command   three of five ways to end, a syntax error; two ways, a missing import
#   test_peers           a run of pytest under each substitution; the classifier, a file that does not end
# Thorough tests that run every night; before a change lands, CI runs the given share of each, spread over its cases.
# All of them guard tools (statecheck, the linter) or repeat at random what fixed tests check in CI.
NIGHTLY = {
    "test_finds_every_fault": 1 / 4,  # each wrong module takes statecheck 2 to 12 s
    "test_no_false_alarm": 1 / 4,
    "test_all_writes_everywhere": 1 / 4,  # the transformation matrix in CI has the same cells with other programs
    "test_more_random_programs": 1 / 4,  # four parts of 40 programs; `make test` runs 12 others
    "test_names_the_faults_of_public_threads": 1 / 4,  # each takes five processes; test_resumecheck.py has the rules
    "test_blames_no_right_job": 1 / 2,
    "test_names_other_faults": 1 / 2,
    "test_a_wrong_answer_gets_its_sentence": 1 / 4,  # each grades a file of the course in a process of its own
    "test_a_right_answer_in_another_style_passes": 1 / 3,
    "test_every_transformation_in_every_mode": 1 / 4,  # `watch`: some cells of the matrix are among the quick tests
    "test_gradients_of_activations": 1 / 3,
    "test_transformations_within_the_model": 1 / 3,
    "test_every_installed_package": 1 / 4,  # the linter on other people's files
    "test_programs_of_the_grammar": 0,  # fuzz
    "test_programs_of_cut_cases": 0,
    "test_programs_of_shuffled_cases": 0,
    "test_more_damage": 0,  # 79 s of random damage; CI damages every kind of file once
    "test_the_demo_killed_ten_times_ends_as_if_it_had_not_been": 0,  # 159 s; CI kills a smaller run
}


# The files that take longest begin: with two processes, whichever ends last would otherwise be alone for a minute.
LONGEST = (
    "test_matrix", "test_watch_presets", "test_watch", "test_statistic_laws", "test_differentiation", "test_programs",
    "test_per_replica", "test_compile_step", "test_several_steps", "test_statecheck", "test_check_command",
    "test_replicas", "test_laws", "test_demo", "test_processes", "test_checkpoints",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Puts the longest files first, and marks the cases of `NIGHTLY` that CI leaves out."""
    rank = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(pathlib.Path(item.path).stem, len(rank)))
    cases = {}
    for item in items:
        name = getattr(item, "originalname", None)  # an example in a document has none
        if name in NIGHTLY and item.get_closest_marker("thorough"):
            number = cases[name] = cases.get(name, -1) + 1
            if not NIGHTLY[name] or number % round(1 / NIGHTLY[name]):
                item.add_marker("nightly")


def pytest_collection_finish():
    """Leaves what was imported and collected, a million objects, out of every later garbage collection."""
    gc.collect()
    gc.freeze()
