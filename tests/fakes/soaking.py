"""Work beside everything that breaks: how long, in which order, and what must hold of the ledger afterwards."""

from __future__ import annotations

import os
import random
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from tao_flows.ledger.base import Ledger, RunRef
from tao_flows.ledger.budgets import BudgetStore
from tao_flows.records import RunRecord, TaskRecord, TaskState

SOAK_S = float(os.environ.get("TAO_FLOWS_SOAK_S", "60"))
"""For how long things break; ``make soak`` says an hour."""
SEED = int(os.environ.get("TAO_FLOWS_SOAK_SEED", "1"))
OPEN = {TaskState.RUNNING, TaskState.DEFERRED}
_FRAME = re.compile(r'^\s+File "([^"]+)", line \d+')


def soak(work: Callable[[int], None], troubles: Mapping[str, Callable[[], None]], most_rest_s: float) -> Counter[str]:
    """Gives work and breaks things in turns, for ``SOAK_S`` and until each kind of trouble was had, all equally often.

    Args:
        work: gives work; its number counts up.
        troubles: by name; each comes back when what it broke is up again, or is about to be.
        most_rest_s: the longest rest between two.
    """
    rng, had = random.Random(SEED), Counter[str]()
    begun_s, kinds, number = time.monotonic(), list[str](), 0
    while time.monotonic() - begun_s < SOAK_S or set(had) != set(troubles):
        work(number)
        kinds = kinds or rng.sample(sorted(troubles), len(troubles))
        kind = kinds.pop()
        print(f"{time.strftime('%H:%M:%S')} {kind}", flush=True)
        troubles[kind]()
        had[kind] += 1
        number += 1
        time.sleep(rng.uniform(0.2, 1.0) * most_rest_s)
    return had


def ref_of(run: RunRecord) -> RunRef:
    return RunRef(run.engine, run.namespace, run.run_id, run.flow)


def check_ledger(ledger: Ledger, wanted: Iterable[str], budget: str) -> list[TaskRecord]:
    """Asserts what must hold once all has ended, whatever broke; gives the tasks of the runs that were wanted.

    Args:
        ledger: as it is now.
        wanted: ids of runs, each of which is to have one record that has ended.
        budget: one that all of their tasks, and no others, are charged to.
    """
    runs = ledger.runs()
    doubled = [run_id for run_id, count in Counter(run.run_id for run in runs).items() if count > 1]
    assert doubled == []
    by_id = {run.run_id: run for run in runs}
    assert sorted(set(wanted) - by_id.keys()) == [], "runs that ran are not lost"
    tasks: list[TaskRecord] = []
    for run_id in wanted:
        ref = ref_of(by_id[run_id])
        assert by_id[run_id].state not in {"running", "unseen"}, by_id[run_id]
        for host in ledger.accounts(ref):
            a = host.account
            lines = (a.tasks_uj, a.overhead_uj, a.idle_uj, a.allocated_idle_uj, a.unattributed_uj)
            assert sum(uj or 0 for uj in lines) == (a.counter_uj or 0) + (a.estimate_uj or 0), (run_id, a)
        tasks += ledger.tasks(ref)
    assert [task.key for task in tasks if task.state in OPEN] == []
    assert max(Counter((task.key, task.segment) for task in tasks).values(), default=0) == 1
    (standing,) = BudgetStore(ledger).standings([budget])
    figures = [task.measurement.energy.value_uj for task in tasks if task.measurement is not None and task.budgets]
    assert standing.spent_uj == sum(figure for figure in figures if figure is not None)
    assert standing.reserved_uj == 0
    return tasks


def ours_raised(logs: Iterable[str]) -> Sequence[str]:
    """Tracebacks that end in code of ours: what raised there was not the user's, nor the engine's."""
    found = []
    for text in logs:
        for block in text.split("Traceback (most recent call last):")[1:]:
            frames = [match[1] for line in block.splitlines() if (match := _FRAME.match(line))]
            if frames and ("/tao_flows/" in frames[-1] or "/airflow_plugin/" in frames[-1]):
                found.append(block[:2_000])
    return found
