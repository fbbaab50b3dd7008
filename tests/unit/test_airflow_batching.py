from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_plugin.batching import Item, all_items, batches, energies, failure
from tao_flows.batching import OVERHEAD_SHARE, UNKNOWN_ITEMS, item_j, item_s, items_per_task, overhead_j
from tao_flows.errors import InputError
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import History, RunRef, Settled
from tao_flows.ledger.reads import Scope, overheads
from tao_flows.records import HostAccount, RunKey, RunRecord, Segment, TaskRecord, TaskState

SEGMENT = Segment("host", "boot", 1, 1)


def measured(value_uj, cpu_s, quality=Quality.ATTRIBUTED):
    figure = Figure(value_uj, value_uj, value_uj, quality, ("rapl",)) if value_uj is not None else Figure.unknown("cpu")
    cpu = CpuTime(cpu_s, "perf", covers_children=True)
    return Measurement("run", 0, 1.0, cpu, figure, (), Account(), ())


def record(instance, try_number, measurement):
    key = RunKey("airflow", "default", "dag", "run", "f.run", str(instance), try_number)
    return TaskRecord(key, SEGMENT, TaskState.COMPLETED, 1, measurement=measurement)


def test_items_come_in_the_order_of_airflows_map_indexes():
    items = all_items({"x": [1, 2], "y": {"a": 3, "b": 4}})
    assert items == [
        {"x": 1, "y": ("a", 3)},
        {"x": 1, "y": ("b", 4)},
        {"x": 2, "y": ("a", 3)},
        {"x": 2, "y": ("b", 4)},
    ]


@pytest.mark.parametrize("values", ["text", b"bytes", 7, None])
def test_what_is_no_list_is_refused_by_name(values):
    with pytest.raises(InputError, match="x: a value of type"):
        all_items({"x": values})


@given(st.lists(st.integers()), st.integers(1, 9))
def test_batches_hold_each_item_once_in_order_and_none_is_too_large(values, size):
    divided = batches([{"x": value} for value in values], size)
    assert [item["x"] for batch in divided for item in batch["items"]] == values
    assert all(1 <= len(batch["items"]) <= size for batch in divided)
    firsts = itertools.accumulate((len(batch["items"]) for batch in divided), initial=0)
    assert [batch["first"] for batch in divided] == list(firsts)[: len(divided)]


def test_an_item_is_the_same_after_it_was_kept():
    item = Item(3, "failed", 1, ((1, 0.25), (2, 0.5)), None, "ValueError: no")
    assert Item.from_json(item.to_json()) == item
    assert [replace(item, state=state).finished for state in ("success", "skipped", "failed", "fatal")] == [
        True, True, False, False,
    ]  # fmt: skip


def test_an_error_names_five_items_and_counts_the_others():
    failed = [Item(index, "failed", 0, error="ValueError: no") for index in range(7)]
    said = failure(failed, {index: {"x": index} for index in range(7)}, of=9)
    assert said.startswith("7 of 9 items failed: item 0 (x=0): ValueError: no; item 1 (x=1)")
    assert said.endswith("; and 2 more")


@given(st.floats(1e-9, 1e6), st.floats(0, 1e6))
def test_batches_are_the_smallest_that_keep_the_engines_share(item, overhead):
    def share(items):
        return overhead / (overhead + items * item)

    chosen = items_per_task(item, overhead)
    assert share(chosen) <= OVERHEAD_SHARE * (1 + 1e-9)
    assert chosen == 1 or share(chosen - 1) > OVERHEAD_SHARE * (1 - 1e-9)


@pytest.mark.parametrize(("item", "overhead"), [(None, 1.0), (1.0, None), (0.0, 1.0)])
def test_where_a_cost_is_not_known_batches_have_a_size_of_their_own(item, overhead):
    assert items_per_task(item, overhead) == UNKNOWN_ITEMS


def test_an_item_costs_what_runs_of_known_size_took():
    runs = (Settled(6_000_000, 1.0, 3.0), Settled(2_000_000, 1.0, 1.0), Settled(None, 1.0, 9.0), Settled(9, 1.0))
    assert item_j(History(runs)) == 2.0
    assert item_s(History(runs)) == pytest.approx(3 / 13)
    assert item_j(History((Settled(5, 1.0),))) is item_s(History((Settled(5, 1.0),))) is None


def test_the_overhead_of_a_task_is_that_of_its_flows_latest_runs(tmp_path):
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    for number, flow in enumerate(("dag", "dag", "other")):
        run = RunRecord("airflow", "default", flow, f"run{number}", "success", 10 + number, SEGMENT)
        ledger.put_run(run)
        for instance in range(4):
            each = record(instance, 1, measured(1, 1.0))
            ledger.put_task(replace(each, key=replace(each.key, flow=flow, run_id=run.run_id)))
        whole = Account(tasks_uj=4, overhead_uj=8_000_000)
        ledger.put_account(RunRef("airflow", "default", run.run_id, flow), HostAccount("host", whole, 1.0, run.run_id))
    assert overhead_j(ledger, "airflow", overheads(ledger, Scope(0, "airflow", "dag"))) == 2.0
    assert overhead_j(ledger, "airflow", overheads(ledger, Scope(0, "airflow", "nobody"))) is None
    ledger.close()


def test_joules_are_shared_out_by_cpu_seconds_over_all_tries():
    items = [Item(0, "success", 0, ((1, 1.0),)), Item(1, "success", 0, ((1, 3.0), (2, 2.0)))]
    records = [record(0, 1, measured(8_000_000, 5.0)), record(0, 2, measured(1_000_000, 2.0))]
    first, second = energies(items, records)
    # A fifth of the first try was spent outside its items, and is nobody's.
    assert first.value_j == pytest.approx(1.6)
    assert second.value_j == pytest.approx(4.8 + 1.0)
    assert second.quality is Quality.ATTRIBUTED


def test_a_share_of_a_measured_figure_is_attributed():
    (figure,) = energies([Item(0, "success", 0, ((1, 1.0),))], [record(0, 1, measured(10, 1.0, Quality.MEASURED))])
    assert figure.quality is Quality.ATTRIBUTED


@pytest.mark.parametrize("records", [[], [record(0, 1, None)], [record(0, 1, measured(None, 1.0))],
                                     [record(0, 1, measured(5, None))]])  # fmt: skip
def test_what_is_not_known_of_a_try_is_not_known_of_its_items(records):
    (figure,) = energies([Item(0, "success", 0, ((1, 0.0),))], records)
    assert (figure.value_j, figure.quality, figure.unknown_parts) == (None, Quality.UNKNOWN, ("try 1",))


@given(st.lists(st.floats(0, 100), min_size=1, max_size=20), st.integers(0, 10**12), st.floats(0, 2000))
def test_items_never_get_more_joules_than_their_task(cpu_s, whole_uj, whole_s):
    items = [Item(index, "success", 0, ((1, each),)) for index, each in enumerate(cpu_s)]
    figures = energies(items, [record(0, 1, measured(whole_uj, whole_s))])
    assert sum(figure.value_uj or 0 for figure in figures) <= whole_uj
