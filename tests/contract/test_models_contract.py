"""Which runs are of a model, by every kind of ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from model_runs import MODEL, START, S, put_run, put_task

from tao_flows.governance.aggregate import model_support
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.models import runs_of_model, unrecorded_runs_of_model
from tao_flows.records import Who


@pytest.fixture(params=["sqlite", "postgres"])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    url = str(request.getfixturevalue("postgres_url")) if request.param == "postgres" else str(tmp_path / "l.db")
    opened = open_ledger(url)
    yield opened
    opened.close()


def test_runs_are_found_by_their_own_word_and_by_their_tasks_in_order_of_start(ledger: Ledger) -> None:
    late = put_run(ledger, "late", who=Who(model_id=MODEL), started_wall_ns=START + 500 * S)
    early = put_run(ledger, "early")
    put_task(ledger, early, "a", 5, model_id=MODEL)
    put_task(ledger, early, "b", 7, model_id=MODEL)
    put_run(ledger, "other", who=Who(model_id="letters"))
    assert [run.run_id for run in runs_of_model(ledger, MODEL)] == ["early", "late"]
    assert [run.run_id for run in runs_of_model(ledger, MODEL, late.started_wall_ns)] == ["late"]
    document = model_support(ledger, MODEL, now_wall_ns=START + 9_000 * S)
    (energy,) = [item for item in document["items"] if item["id"] == "training_energy"]
    assert energy["energy_uj"] == "12"


def test_a_run_of_the_same_id_in_another_flow_is_another_run(ledger: Ledger) -> None:
    one, other = put_run(ledger, "same", flow="one"), put_run(ledger, "same", flow="other")
    put_task(ledger, other, "a", 5, model_id=MODEL)
    put_task(ledger, one, "a", 7)
    assert [run.flow for run in runs_of_model(ledger, MODEL)] == ["other"]


def test_runs_of_which_only_tasks_are_known_are_counted(ledger: Ledger) -> None:
    run = put_run(ledger)
    for run_id in ("a", "b"):
        for task in ("x", "y"):
            put_task(ledger, replace(run, run_id=run_id), task, 5, model_id=MODEL)
    assert runs_of_model(ledger, MODEL) == []
    assert unrecorded_runs_of_model(ledger, MODEL) == 2
    assert unrecorded_runs_of_model(ledger, MODEL, START + 900 * S) == 0
