"""The promise behind every verdict, on the machine at hand, while another process keeps a core busy."""

from __future__ import annotations

import psutil
import pytest
from click.testing import CliRunner

from edgekit.bench.self_check import (
    busy_core,
    check_process_overhead,
    check_verdicts,
    check_verdicts_in_processes,
    main,
    matrix_workload,
    products_for,
)


@pytest.mark.long
def test_equal_models_are_called_equal_and_five_percent_is_found() -> None:
    with busy_core():
        check = check_verdicts(matrix_workload, products_for(1.5e-3), repeats=20)
    assert check.false_verdicts <= 1, [s.interval for s in check.equal]
    assert check.found >= 18, [s.interval for s in check.slowed]


@pytest.mark.long
def test_the_same_holds_where_each_has_its_own_process() -> None:
    with busy_core():
        check = check_verdicts_in_processes(products_for(1.5e-3), repeats=20)
    assert check.false_verdicts <= 1, [s.interval for s in check.equal]
    assert check.found >= 18, [s.interval for s in check.slowed]


def test_asking_another_process_costs_less_than_two_percent_of_a_millisecond() -> None:
    overhead = check_process_overhead(products_for(1e-3))
    assert abs(overhead) < 0.02, f"{100 * overhead:+.2f} % beside the model's own count"


@pytest.mark.parametrize("where", [[], ["--one-process"]])
def test_the_command_reports_all_three_numbers(where: list[str]) -> None:
    result = CliRunner().invoke(main, ["--repeats", "1", "--latency-ms", "0.5", *where])
    assert result.exit_code == 0, result.output
    assert "equal workload:" in result.output
    assert "5 % more work:   found" in result.output
    assert "overhead:" in result.output


def test_the_busy_process_ends_with_the_block() -> None:
    others = set(psutil.Process().children())
    with busy_core():
        (child,) = set(psutil.Process().children()) - others
        assert child.is_running()
    assert not child.is_running()
