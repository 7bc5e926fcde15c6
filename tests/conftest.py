# SPDX-License-Identifier: Apache-2.0
"""Fixtures and markers that all tests share."""

import jax
import pytest


@pytest.fixture
def as_users_run_it():
    """JAX's own promotion of dtypes and ranks, and quick compilation: checks compile much and run little."""
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()  # hundreds of programs that nobody will run again


# Thorough tests that run every night; before a change lands, CI runs the given share of each, spread over its cases.
# All of them guard tools (statecheck, the linter) or repeat at random what fixed tests check in CI.
NIGHTLY = {
    "test_finds_every_fault": 1 / 4,  # each wrong module takes statecheck 2 to 12 s
    "test_no_false_alarm": 1 / 4,
    "test_all_writes_everywhere": 1 / 4,  # the transformation matrix in CI has the same cells with other programs
    "test_more_random_programs": 0,  # 120 more of the programs of which CI runs 40
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


def pytest_collection_modifyitems(items):
    """Marks the cases of `NIGHTLY` that CI leaves out."""
    cases = {}
    for item in items:
        name = getattr(item, "originalname", None)  # an example in a document has none
        if name in NIGHTLY and item.get_closest_marker("thorough"):
            number = cases[name] = cases.get(name, -1) + 1
            if not NIGHTLY[name] or number % round(1 / NIGHTLY[name]):
                item.add_marker("nightly")
