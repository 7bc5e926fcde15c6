# SPDX-License-Identifier: Apache-2.0
"""Fixtures and markers that all tests share."""

import gc
import pathlib
import zlib

import jax
import pytest


@pytest.fixture(autouse=True)
def _optimizations(request):
    """Compiles the programs of a test that is marked `optimized` as users do."""
    quick = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", quick and not request.node.get_closest_marker("optimized"))
    yield
    jax.config.update("jax_disable_most_optimizations", quick)


@pytest.fixture(scope="module")
def drops_programs():
    """Drops the programs of a module after its last test: hundreds that no other module runs again."""
    yield
    jax.clear_caches()


@pytest.fixture
def standard_promotion(drops_programs):
    """JAX's own promotion of dtypes and ranks, as users have it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# `make test` has six minutes on two cores, without compiled programs. These cases take too long for it: CI runs them as
# thorough tests. After the semicolon is the quick sibling of each:
#   test_programs        random programs beyond 12, and two of three writes in each branch; 12 programs, every branch
#   test_processes       two processes of two devices, four processes, explicit meshes; two processes of one device
#   test_demo            the finished run once more, Ctrl-C; one run with its table and plots, Ctrl-C before it begins
#   test_differentiation half of filters x modes, and four of six modes of the longest; every filter, every mode
#   test_matrix          three of four transformations x modes, five of six reads in a derivative; the others of each
#   test_per_replica     half of splits, modes and types x kinds of mesh; every split, mode and type, on either kind
#   test_several_steps   three of four ways in which steps bind their objects; the mixed way, 120 calls
#   test_statistic_laws  dtypes of the types other than one; two dtypes of every type
#   test_log_histogram   two of three forms x lengths x sizes; every form with every length and size
#   test_host_numbers    spellings under x64 other than 64-bit arrays; these two, and all without x64
#   test_host_actions    four of six seeds; two
#   test_learn*          half of the solutions and tricks, start files of nine of 12 exercises; the others of each
#   test_check_command   three of five ways to end, a syntax error; two ways, a missing import
#   test_peers           a run of pytest under each substitution; the classifier, a file that does not end
# Of these tests, one case in so many is quick, and the others are thorough. Every case is a program or a process of its
# own. The quick ones are spread over the cases at random, so a value of a parameter may be in none of them.
ONE_IN = {
    "test_every_optimizer_trains_as_optax_does": 6,
    "test_all_state_is_global_under_jit": 2,
    "test_all_state_is_global_in_shard_map": 2,
    "test_an_update_is_one_all_reduce": 3,
    "test_state_broadcast_over_vmap_counts_every_lane_once_or_raises": 3,
    "test_no_collective_is_added": 3,
    "test_parameters_stay_where_they_are": 2,
    "test_numbers_are_those_of_tensors_captured_by_hand": 3,
    "test_the_loop_is_that_of_nnx_jit": 2,
    "test_a_solution_passes": 2,
    "test_writes_in_a_branch": 3,
    "test_writes_within": 3,
    "test_an_operation_in_numpy_has_the_bits_of_xla": 2,
    "test_collectives_of_a_step": 2,
    "test_a_stack_has_a_row_for_each_lane": 2,
    "test_replicas_combine": 2,
    "test_two_kinds_of_step": 2,
    "test_transformations_within_the_loss": 2,
    "test_a_model_closed_over_raises": 2,
    "test_odd_files": 2,
}
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
    "test_watch", "test_watch_presets", "test_matrix", "test_per_replica", "test_watch_meshes", "test_compile_step",
    "test_replicas", "test_statistic_laws", "test_differentiation", "test_several_steps", "test_processes",
    "test_check_command", "test_scheduled_optimizers", "test_moments", "test_programs", "test_demo", "test_checkpoints",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """Puts the longest files first, and marks the cases of `ONE_IN` and `NIGHTLY` that are left out."""
    rank = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(pathlib.Path(item.path).stem, len(rank)))
    cases = {}
    # By a hash of their names: parameters repeat with a period, which might be that of the choice.
    for item in sorted(items, key=lambda item: zlib.crc32(item.name.encode())):
        name = getattr(item, "originalname", None)
        if name in ONE_IN and not item.get_closest_marker("thorough"):
            number = cases[name] = cases.get(name, -1) + 1
            if number % ONE_IN[name]:
                item.add_marker("thorough")
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
