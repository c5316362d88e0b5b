"""The checks that every index passes; `ra-bench check SPEC` and tests/test_conformance.py run them.

A check is a function of a `Subject` whose docstring states the fact that it checks. It raises where the fact
does not hold, and may return a remark. `run` turns whatever happens into a `CheckResult`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ra_bench.conformance import answers, costs, inputs, state
from ra_bench.conformance.subject import BrokenContractError, Subject

Check = Callable[[Subject], "str | None"]


@dataclass(frozen=True)
class CheckResult:
    """What came of one check: its name, whether it passed, and why not (or a remark)."""

    name: str
    passed: bool
    detail: str = ""


CHECKS: tuple[Check, ...] = (
    answers.result_shapes,
    answers.own_budget,
    answers.every_effort,
    answers.more_results_than_keys,
    answers.few_keys,
    answers.one_dimension,
    answers.duplicates,
    answers.zero_rows,
    inputs.any_layout,
    inputs.half_keys,
    inputs.inputs_unchanged,
    state.same_seed_same_answer,
    state.second_build_replaces,
    state.save_and_load,
    state.torn_file_refused,
    costs.work_counted,
    costs.memory_counted,
    answers.attend_is_exact,
    state.insert_then_search,
    state.search_is_pure,
    inputs.learn_queries_accepted,
    inputs.wrong_rows_refused,
    answers.batch_equals_blocks,
    answers.recall_floor,
)


def check(spec: str) -> list[CheckResult]:
    """All checks on the index of one spec string; a crash is a failed check, never a traceback."""
    subject = Subject(spec)
    return [run(subject, one) for one in CHECKS]


def run(subject: Subject, one: Check) -> CheckResult:
    """One check; `detail` tells why it failed, or what it has to remark."""
    name = one.__name__
    try:
        return CheckResult(name, True, one(subject) or "")
    except BrokenContractError as error:
        return CheckResult(name, False, str(error))
    except Exception as error:  # a method's own code: anything can be raised
        return CheckResult(name, False, f"raised {type(error).__name__}: {str(error)[:300]}")
