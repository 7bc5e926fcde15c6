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
#   test_differentiation filters x modes, transformations x modes, four of six modes of the longest; every filter, every
#                        transformation, every mode
#   test_matrix          three of four transformations x modes, seven of eight reads in a derivative; the others of each
#   test_per_replica     modes and types x kinds of mesh, three of four splits; every mode and type, on either kind
#   test_several_steps   three of four ways in which steps bind their objects; the mixed way, 120 calls
#   test_statistic_laws  types x dtypes; every type, every dtype
#   test_laws            types x modes; every type, every mode
#   test_log_histogram   forms x lengths x sizes; every form, length and size
#   test_host_numbers    spellings under x64 other than 64-bit arrays; these two, and all without x64
#   test_host_actions    four of six seeds; two
#   test_learn*          half of the solutions and tricks, start files of nine of 12 exercises; the others of each
#   test_check_command   three of five ways to end, a syntax error, two of three pitfalls; the others of each
#   test_matrix          the warning of statecheck about each type; test_statecheck.py has that rule
#   test_peers           a run of pytest under each substitution; the classifier, a file that does not end
# Of these tests with several parameters, so many cases are quick as it takes to have each value of each parameter in
# one of them. Every case is a program or a process of its own.
EACH_VALUE_ONCE = {
    "test_all_state_is_global_under_jit",
    "test_a_compiled_step_under_the_guard",
    "test_a_failing_call_changes_nothing",
    "test_a_skipped_micro_step_counts_as_a_batch_only",
    "test_a_solution_passes",
    "test_an_update_is_one_all_reduce",
    "test_any_filter",
    "test_any_tree_is_clipped_as_by_optax",
    "test_every_dtype_is_taken",
    "test_every_form_counts_alike",
    "test_modes_agree_to_the_bit",
    "test_no_collective_is_added",
    "test_no_collective_in_the_step",
    "test_on_a_mesh",
    "test_parameters_stay_where_they_are",
    "test_replicas_combine",
    "test_reset_is_the_identity_of_merge",
    "test_the_loop_is_that_of_nnx_jit",
    "test_the_numbers_are_those_of_one_device",
    "test_transformations_within_the_loss",
    "test_two_kinds_of_step",
    "test_values_that_are_hard_to_draw",
}
# Of these, one case in so many is quick, spread over the cases at random: every value would still take too long.
ONE_IN = {
    "test_every_optimizer_trains_as_optax_does": 12,
    "test_all_state_is_global_in_shard_map": 2,
    "test_state_broadcast_over_vmap_counts_every_lane_once_or_raises": 3,
    "test_numbers_are_those_of_tensors_captured_by_hand": 6,
    "test_collectives_of_a_step": 4,
    "test_a_model_closed_over_raises": 4,
    "test_odd_files": 2,
    "test_a_stack_has_a_row_for_each_lane": 2,
    "test_an_operation_in_numpy_has_the_bits_of_xla": 2,
    "test_writes_in_a_branch": 3,
    "test_writes_within": 3,
    "test_replicated_increments_count_once": 4,
    "test_pitfalls_of_the_class_are_named": 3,
    "test_right_solutions_pass": 2,
}
# Thorough tests that run every night; before a change lands, CI runs the given share of each, spread over its cases.
# They guard tools (statecheck, resumecheck, the linter, the benchmarks, the course), repeat at random what fixed tests
# check in CI, or cross the parameters of a law that CI checks for each value of each parameter.
NIGHTLY = {
    # tools
    "test_finds_every_fault": 1 / 8,  # each wrong module takes statecheck 2 to 12 s
    "test_no_false_alarm": 1 / 12,
    "test_opinions_differ": 1 / 3,
    "test_names_the_faults_of_public_threads": 1 / 12,  # each takes five processes; test_resumecheck.py has the rules
    "test_blames_no_right_job": 1 / 6,
    "test_names_other_faults": 1 / 4,
    "test_the_demo_resumes_exactly": 0,  # 38 s; CI checks a loop of NumPy, and other jobs
    "test_every_case_of_every_group_runs": 0,  # 90 s of benchmarks at their smallest; `make test` runs one group
    "test_the_command_for_accelerators_runs_in_a_plain_copy": 1 / 4,
    "test_runs_eagerly_twice": 1 / 8,  # modules of the linter's corpus; CI lints all of them
    "test_every_installed_package": 1 / 4,  # the linter on other people's files
    "test_fixed_packages_import_as_before": 1 / 3,
    "test_each_failure_is_expected_or_a_fault": 0,  # the runner of Flax's own tests; `make test` checks its rules
    "test_a_wrong_answer_gets_its_sentence": 1 / 4,  # each grades a file of the course in a process of its own
    "test_a_right_answer_in_another_style_passes": 1 / 3,
    "test_a_finished_run_shows_its_table_again": 0,  # `make demo` in CI, and a short run in `make test`
    # random
    "test_all_writes_everywhere": 1 / 16,  # the transformation matrix in CI has the same cells with other programs
    "test_more_random_programs": 0,  # four parts of 40 programs; `make test` runs 12 others
    "test_a_thousand_random_steps_are_those_of_nnx_jit": 1 / 2,
    "test_programs_of_the_grammar": 0,  # fuzz
    "test_programs_of_cut_cases": 0,
    "test_programs_of_shuffled_cases": 0,
    "test_more_damage": 0,  # 79 s of random damage; CI damages every kind of file once
    "test_the_demo_killed_ten_times_ends_as_if_it_had_not_been": 0,  # 159 s; CI kills a smaller run
    # products of parameters; CI has the other cases, and `make test` some of each
    "test_every_optimizer_trains_as_optax_does": 1 / 4,  # 22 of 66 optimizers in CI, in every way
    "test_every_transformation_within_a_step": 1 / 3,
    "test_every_transformation_in_every_mode": 1 / 4,  # `watch`
    "test_gradients_of_activations": 1 / 3,
    "test_transformations_within_the_model": 1 / 3,
    "test_training_with_fusion_differs_at_most_in_the_last_bit": 1 / 4,
    "test_presets_are_as_by_hand_and_training_is_bit_equal": 1 / 3,
    "test_read_in_a_derivative": 1 / 2,
    "test_eager_updates_of_a_split_batch_count_it_whole": 1 / 4,
    "test_all_state_is_global_under_jit": 1 / 2,
    "test_sharded_batches_count_whole": 1 / 2,
    "test_collectives_of_other_state": 1 / 2,
    "test_processes_count_the_same_as_one_process": 1 / 3,  # 36 s each; CI has two processes of one and two devices
    "test_any_tree_is_clipped_as_by_optax": 1 / 4,
}


# The files that take longest begin: with two processes, whichever ends last would otherwise be alone for a minute.
LONGEST = (
    "test_watch", "test_watch_presets", "test_matrix", "test_per_replica", "test_watch_meshes", "test_compile_step",
    "test_replicas", "test_statistic_laws", "test_differentiation", "test_several_steps", "test_processes",
    "test_check_command", "test_scheduled_optimizers", "test_moments", "test_programs", "test_demo", "test_checkpoints",
)  # fmt: skip


def _mark_repeated_values(items):
    """Marks the cases of `EACH_VALUE_ONCE` as thorough, but for those that together have each value."""
    tests = {}
    for item in sorted(items, key=lambda item: zlib.crc32(item.name.encode())):
        if getattr(item, "originalname", None) in EACH_VALUE_ONCE and not item.get_closest_marker("thorough"):
            tests.setdefault((item.path, item.originalname), []).append(item)
    for cases in tests.values():
        values = {case: {(name, id(value)) for name, value in case.callspec.params.items()} for case in cases}
        left = set().union(*values.values())
        while left:
            chosen = max(cases, key=lambda case: len(values[case] & left))
            cases.remove(chosen)
            left -= values[chosen]
        for case in cases:
            case.add_marker("thorough")


def pytest_collection_modifyitems(items):
    """Puts the longest files first, and marks the cases of the tables above that are left out."""
    rank = {name: k for k, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(pathlib.Path(item.path).stem, len(rank)))
    _mark_repeated_values(items)
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
    """Leaves what was imported and collected, a million objects, out of every later garbage collection.

    Old objects are searched a tenth as often: JAX keeps those of every program, and few of them are garbage.
    """
    gc.collect()
    gc.freeze()
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, 10 * old)
