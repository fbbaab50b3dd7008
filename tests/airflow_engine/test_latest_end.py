"""By when a task must have ended: no later than what follows it leaves room for."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_plugin.latest import HOP_S, after_s, latest_end_wall_ns
from tao_flows.units import NS_PER_S

pytestmark = pytest.mark.airflow

runtimes = st.one_of(st.none(), st.floats(0, 1e6))


@st.composite
def dags(draw: st.DrawFn) -> tuple[dict[str, list[str]], dict[str, float | None]]:
    """Up to ten tasks, of which each leads only to later ones."""
    count = draw(st.integers(1, 10))
    names = [f"t{number}" for number in range(count)]
    behind = {
        name: [later for later in names[number + 1 :] if draw(st.booleans())] for number, name in enumerate(names)
    }
    return behind, {name: draw(runtimes) for name in names}


def paths(task: str, behind: Mapping[str, list[str]]) -> list[list[str]]:
    """Every way from a task to where nothing follows, without the task itself."""
    return [[each, *rest] for each in behind[task] for rest in paths(each, behind)] or [[]]


@given(dags())
def test_what_follows_takes_as_long_as_the_longest_of_all_paths(dag):
    behind, p95 = dag
    lengths = [sum((p95[each] or 0.0) + HOP_S for each in path) for path in paths("t0", behind)]
    assert after_s("t0", behind, p95.__getitem__) == pytest.approx(max(lengths))


@given(dags(), st.floats(0, 1e6))
def test_a_task_that_takes_longer_never_leaves_more_room(dag, more_s):
    behind, p95 = dag
    slower = {name: (value or 0.0) + more_s for name, value in p95.items()}
    assert after_s("t0", behind, slower.__getitem__) >= after_s("t0", behind, p95.__getitem__)


@given(st.lists(st.one_of(st.none(), st.integers(0, 2**62)), max_size=5), st.floats(0, 1e6))
def test_the_run_ends_by_the_first_of_its_ends(ends_ns, behind_s):
    latest_ns = latest_end_wall_ns(ends_ns, behind_s)
    known = [end_ns for end_ns in ends_ns if end_ns is not None]
    if not known:
        assert latest_ns is None
    else:
        assert all(latest_ns + round(behind_s * NS_PER_S) <= end_ns for end_ns in known)


def test_a_chain_may_be_longer_than_the_stack_is_deep():
    behind = {f"t{number}": [f"t{number + 1}"] for number in range(20_000)}
    assert after_s("t0", behind, lambda _: 1.0) == pytest.approx(20_000 * (1.0 + HOP_S))
