"""Laws of a report, whatever flows and tasks are called and whatever was read."""

from __future__ import annotations

import io
import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.records import DecisionRecord, HostAccount, Incident, RunKey, RunRecord, Segment, TaskRecord, TaskState
from tao_flows.report.html import render_html
from tao_flows.report.markdown import render_markdown
from tao_flows.report.model import RunReport, build_report
from tao_flows.report.summary import dearest, overview
from tao_flows.report.tables import table_rows
from tao_flows.report.terminal import print_report

T0 = 1_790_000_000_000_000_000
SEGMENT = Segment("n", "b", 1, 1)
ATTACKS = ["<script>alert(1)</script>", "|", "\n\n# x", "[a](javascript:b)", "\x1b]0;x\x07", "\u202e", "`", "&lt;", ""]

names = st.one_of(st.sampled_from(ATTACKS), st.text(max_size=30), st.text(min_size=90, max_size=120))
seconds = st.one_of(st.none(), st.floats(allow_nan=True, allow_infinity=True), st.floats(0, 1e6))
amounts = st.one_of(st.none(), st.integers(0, 10**15))


@st.composite
def figures(draw: st.DrawFn) -> Figure:
    value = draw(amounts)
    if value is None:
        return Figure.unknown(draw(names))
    low, high = draw(st.integers(0, value)), draw(st.integers(value, 2 * 10**15))
    return Figure(value, low, high, draw(st.sampled_from(list(Quality)[:3])), (draw(names),))


@st.composite
def measurements(draw: st.DrawFn) -> Measurement:
    cpu = CpuTime(draw(seconds), draw(names), draw(st.booleans()), draw(st.booleans()))
    wall_s = draw(st.floats(0, 1e6))
    return Measurement("m", T0, wall_s, cpu, draw(figures()), (), Account(), (draw(names),), model=draw(names))


@st.composite
def records(draw: st.DrawFn) -> TaskRecord:
    start = T0 + draw(st.integers(0, 10**13))
    key = RunKey("e", "ns", "f", "r", draw(names), draw(st.sampled_from("abc")), draw(st.integers(1, 3)))
    return TaskRecord(
        key=key,
        segment=Segment("n", "b", 1, draw(st.integers(0, 99))),
        state=draw(st.sampled_from(TaskState)),
        started_wall_ns=start,
        pool=draw(names),
        map_index=draw(st.none() | st.integers(0, 9)),
        ended_wall_ns=draw(st.none() | st.integers(start, start + 10**13)),
        measurement=draw(st.none() | measurements()),
    )


@st.composite
def reports(draw: st.DrawFn) -> RunReport:
    tasks = draw(st.lists(records(), max_size=8))
    answer = {
        "penalty": draw(st.none() | st.floats() | st.booleans()),
        "regime": draw(st.none() | names),
        "violations": draw(st.lists(st.fixed_dictionaries({"id": names, "value": st.floats(), "limit": st.floats()}))),
    }
    lines = [draw(amounts) for _ in range(6)]
    quality = draw(st.sampled_from(Quality))
    account = HostAccount(draw(names), Account(*lines, quality=quality), draw(st.floats(0, 1e6)), "w", (draw(names),))
    return build_report(
        RunRecord("e", draw(names), draw(names), draw(names), draw(names), T0, SEGMENT, name=draw(names)),
        tasks,
        [DecisionRecord(t.key, T0, "advise", draw(names), draw(names), draw(names), {}, answer) for t in tasks],
        draw(st.lists(st.just(account), max_size=2)),
        [Incident(draw(names), draw(names), draw(names))],
    )


def refuse(constant: str) -> float:
    raise AssertionError(f"{constant} is not JSON")


@given(reports())
@settings(max_examples=50)
def test_the_json_of_any_report_is_strict_json(made: RunReport) -> None:
    text = json.dumps(made.to_json(), allow_nan=False)
    assert json.loads(text, parse_constant=refuse)["schema"] == "tao-flows/report/1"


@given(reports())
@settings(max_examples=50)
def test_the_rows_sum_to_the_total_and_their_shares_to_one(made: RunReport) -> None:
    known = [row.energy.value_uj for row in made.tasks if row.energy.value_uj is not None]
    assert (made.energy.value_uj or 0) == sum(known)
    assert (made.energy.value_uj is None) == (not known)
    assert sum(made.by_quality_uj.values()) == sum(known)
    shares = [row.share for row in made.tasks if row.share is not None]
    assert not shares or math.isclose(sum(shares), 1.0, rel_tol=1e-9)


@given(reports(), st.integers(1, 8))
@settings(max_examples=50)
def test_no_joule_and_no_row_is_lost_by_shortening(made: RunReport, limit: int) -> None:
    shown, rest = dearest(made.tasks, limit)
    parts = [row.energy for row in shown] + ([rest.energy] if rest else [])
    assert Figure.total(parts).value_uj == made.energy.value_uj
    assert len(shown) + (rest.count if rest else 0) == len(made.tasks)
    groups, others = overview(made.tasks, limit)
    parts = [group.energy for group in groups] + ([others.energy] if others else [])
    assert Figure.total(parts).value_uj == made.energy.value_uj
    assert sum(group.count for group in groups) + (others.count if others else 0) == len(made.tasks)


@given(reports())
@settings(max_examples=50)
def test_every_renderer_shows_any_report_without_obeying_its_names(made: RunReport) -> None:
    markdown, page = render_markdown(made), render_html(made)
    for text in (markdown, page):
        assert "<script" not in text
        assert "\x1b" not in text
        assert "\u202e" not in text
        text.encode()
    assert "](javascript" not in markdown
    json.dumps(table_rows(made), allow_nan=False)
    file = io.StringIO()
    print_report(made, Console(file=file, width=80))
    assert "\x1b" not in file.getvalue()


def of_ten_thousand(name: str) -> RunReport:
    cpu, figure = CpuTime(0.1, name, covers_children=True), Figure(7, 3, 9, Quality.ESTIMATED, (name,))
    measured = Measurement(name, T0, 1.0, cpu, figure, (), Account(), model=name)
    tasks = [
        TaskRecord(
            RunKey("e", "ns", name, "r", f"{n}{name}", str(n), 1), SEGMENT, TaskState.COMPLETED, T0 + n, pool=name,
            ended_wall_ns=T0 + n + 10**9, measurement=measured,
        )
        for n in range(10_000)
    ]  # fmt: skip
    decisions = [DecisionRecord(t.key, T0, name, f"{n}{name}", name, name, {}, {}) for n, t in enumerate(tasks)]
    incidents = [Incident(f"{n}{name}", name, name) for n in range(1_000)]
    return build_report(RunRecord("e", "ns", name, name, name, T0, SEGMENT), tasks, decisions, [], incidents)


@pytest.mark.parametrize("name", ["&a<a|" * 1_000, "\U0001f9ea" * 5_000])
def test_ten_thousand_tasks_with_hostile_names_stay_within_the_caps(name: str) -> None:
    made = of_ten_thousand(name)
    assert len(render_markdown(made).encode()) < 256 * 1024
    rows = table_rows(made)
    assert len(rows) == 501
    assert sum(round(row["energy_j"] * 1e6) for row in rows) == made.energy.value_uj == 70_000
    assert len(render_html(made).encode()) < 4 * 1024 * 1024
