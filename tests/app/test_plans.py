"""Queries of pages do not go through all experiments that an owner has, or through all their numbers."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import inspect
from sqlalchemy.orm import Session

from app.experiments import repository as experiments
from app.results.compare import repository as compare
from app.sweeps import repository as sweeps
from app.team import quotas
from tests.app.conftest import Service
from tests.app.explained import explained

IDS = ["a", "b"]


@pytest.mark.parametrize(
    ("ask", "first"),
    [
        (lambda session: compare.numbers(session, IDS), "sqlite_autoindex_result_values_1"),
        (lambda session: compare.curves(session, IDS, ["loss"], 500), "sqlite_autoindex_metric_points_1"),
        (lambda session: experiments.summaries(session, IDS), "sqlite_autoindex_result_values_1"),
        (lambda session: experiments.attempts(session, IDS), "sqlite_autoindex_attempts_1"),
        (lambda session: experiments.sweeps(session, IDS), "ix_sweep_experiments_experiment"),
        (lambda session: sweeps.count_by_status(session, IDS), "sqlite_autoindex_sweep_experiments_1"),
        (lambda session: sweeps.count_cells(session, IDS), "sqlite_autoindex_sweep_cells_1"),
        (lambda session: sweeps.sweep_cells(session, "a", None, None, 50), "sqlite_autoindex_sweep_cells_1"),
        (
            lambda session: sweeps.sweep_cells(session, "a", "failed", None, 50),
            "sqlite_autoindex_sweep_cells_1",
        ),
        (lambda session: sweeps.study_cells(session, "a"), "sqlite_autoindex_sweep_cells_1"),
        (lambda session: sweeps.study_values(session, "a"), "sqlite_autoindex_sweep_experiments_1"),
        (lambda session: sweeps.count_warnings(session, "a"), "sqlite_autoindex_sweep_experiments_1"),
    ],
)
def test_a_page_begins_with_what_it_shows(
    service: Service, ask: Callable[[Session], Any], first: str
) -> None:
    # Whatever a subquery is made of is a step of its own.
    subqueries = ("CO-ROUTINE", "SCAN anon_", "SCAN (subquery")
    plan = [step for step in explained(service, ask) if not step.startswith(subqueries)]
    assert first in plan[0], plan
    assert not any(step.startswith("SCAN") for step in plan), plan


def test_what_an_owner_has_stored_is_read_from_one_index(service: Service) -> None:
    plan = explained(service, quotas.stored_bytes, 0)
    assert [step for step in plan if "COVERING INDEX ix_experiments_stored" in step] == plan


def test_the_experiments_of_a_sweep_are_locked_without_going_through_all_others(service: Service) -> None:
    plan = explained(
        service, lambda session: sweeps.lock_experiments(session, "a", ["failed"], submitted=True)
    )
    of_experiments = [
        step for step in plan if "experiments USING INDEX sqlite_autoindex_experiments_1" in step
    ]
    assert of_experiments, plan
    assert not any(step.startswith("SEARCH experiments USING INDEX ix_") for step in plan), plan


def test_a_list_does_not_read_the_planned_stages(service: Service) -> None:
    with service.database.reading() as session:
        service.submit()
        rows = experiments.page(session, experiments.Filters(), "-created_at", None, 1)
        assert "stages" in inspect(rows[0]).unloaded


def test_a_list_reads_whole_rows_only_of_what_it_shows(service: Service) -> None:
    text = experiments.Filters(text="part")
    plan = explained(service, lambda session: experiments.page(session, text, "-created_at", None, 50))
    assert any("COVERING INDEX ix_experiments_created" in step for step in plan), plan
    assert any("experiments USING INDEX sqlite_autoindex_experiments_1" in step for step in plan), plan
