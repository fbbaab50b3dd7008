"""Laws of rules and of deadlines."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

from hypothesis import assume, given
from hypothesis import strategies as st

from tao_flows.deadline import Deadline, References
from tao_flows.rulecheck import check
from tao_flows.rules import EFFECTS, EXEMPT_TRIGGERS, MODES, TRIGGERS, Rule, Rules, Ruling, Subject

names = st.sampled_from(["a", "ab", "abc", "b"])
patterns = st.sampled_from(["*", "a", "a*", "ab", "?b", "*b*", "[ab]", "abc"])
operators = st.sampled_from(["*", "*Sensor", "S3*", "Bash*"])


def some(of: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(of, min_size=1, max_size=2).map(tuple)


matchers = st.fixed_dictionaries(
    {"name": some(patterns)},
    optional={
        "task": some(patterns),
        "tag": some(patterns),
        "operator": some(operators),
        "trigger": some(st.sampled_from(TRIGGERS)),
    },
)
effects = st.fixed_dictionaries(
    {},
    optional={
        "mode": st.sampled_from(MODES),
        "budgets": st.sampled_from([(), ("x",), ("x", "y")]),
        "deferrable": st.booleans(),
        "reroutable": st.booleans(),
        "max_defer_s": st.sampled_from([0.0, 60.0, 3_600.0]),
    },
)
rules = st.builds(lambda which, what: Rule(**which, **what), matchers, effects)
rule_lists = st.lists(rules, max_size=4).map(tuple)
permissions = st.sampled_from([None, True, False])
subjects = st.builds(
    Subject,
    engine=st.sampled_from(["airflow", "prefect"]),
    flow=names,
    task=names,
    tags=st.lists(names, max_size=2).map(tuple),
    operator=st.sampled_from(["", "S3KeySensor", "BashOperator"]),
    trigger=st.sampled_from(["", *TRIGGERS]),
    sensor=st.booleans(),
    deferrable=permissions,
    reroutable=permissions,
    budgeted=st.booleans(),
    max_defer_s=st.sampled_from([None, 30.0, 7_200.0]),
)
modes = st.sampled_from(MODES)


def holds(ruling: Ruling) -> Ruling:
    """A ruling without its reasons, which number the rules."""
    return replace(ruling, because=())


@given(rule_lists, subjects, modes, modes)
def test_a_lower_global_mode_never_does_more(items: tuple[Rule, ...], subject: Subject, one: Any, other: Any) -> None:
    low, high = sorted((one, other), key=MODES.index)
    below, above = (MODES.index(Rules(items).ruling(subject, mode).mode) for mode in (low, high))
    assert below <= above
    assert below <= MODES.index(low)


@given(rule_lists, subjects)
def test_nothing_is_enforced_that_did_not_opt_in(items: tuple[Rule, ...], subject: Subject) -> None:
    matching = [rule for rule in items if rule.matches(subject)]
    by_rule = any(rule.mode == "enforce" or rule.deferrable or rule.reroutable or rule.budgets for rule in matching)
    in_code = subject.deferrable or subject.reroutable or subject.budgeted
    assert by_rule or in_code or Rules(items).ruling(subject, "enforce").mode != "enforce"


@given(rule_lists, subjects)
def test_what_is_exempt_is_at_most_observed_unless_a_rule_was_written_for_it(
    items: tuple[Rule, ...], subject: Subject
) -> None:
    assume(subject.trigger in EXEMPT_TRIGGERS or subject.sensor)
    unwritten = tuple(rule for rule in items if not rule.trigger and not rule.operator)
    assert Rules(unwritten).ruling(subject, "enforce").mode in {"off", "observe"}


@given(rule_lists, subjects, modes, rules, st.integers(0, 4))
def test_a_rule_that_does_not_match_changes_nothing(
    items: tuple[Rule, ...], subject: Subject, mode: Any, other: Rule, place: int
) -> None:
    assume(not other.matches(subject))
    with_it = (*items[:place], other, *items[place:])
    assert holds(Rules(with_it).ruling(subject, mode)) == holds(Rules(items).ruling(subject, mode))


@given(matchers, effects, matchers, effects, st.booleans(), st.lists(subjects, min_size=1, max_size=8), modes)
def test_an_effect_that_is_noted_as_shadowed_can_be_left_out(
    wide: Any, first_effects: Any, narrow: Any, second_effects: Any, nested: bool, each: list[Subject], mode: Any
) -> None:
    first = Rule(**wide, **first_effects)
    second = Rule(**({**narrow, **wide} if nested else narrow), **second_effects)
    left_out: dict[str, None] = {}
    for note in check(Rules((first, second)), "enforce", ("x", "y")):
        if note.code == "SHADOWED" and "aside" not in note.text:
            left_out = dict.fromkeys(note.text.partition(":")[0].split(" and "))
    assert set(left_out) <= set(EFFECTS)
    without = replace(second, **{"max_defer_s" if name == "max_defer" else name: None for name in left_out})
    for subject in each:
        with_all = Rules((first, second)).ruling(subject, mode)
        assert holds(with_all) == holds(Rules((first, without)).ruling(subject, mode))


zones = st.sampled_from(["Europe/Berlin", "America/New_York", "Australia/Lord_Howe", "Pacific/Kiritimati", "UTC"])
moments = st.datetimes(datetime(2019, 1, 1), datetime(2027, 1, 1), timezones=st.just(timezone.utc))  # noqa: DTZ001


@given(zones, moments, st.times().map(lambda time: time.replace(microsecond=0)))
def test_a_time_of_day_is_the_next_moment_at_which_clocks_there_reach_it(zone: str, ready: datetime, by: Any) -> None:
    found = Deadline.parse(f"by {by.isoformat()} {zone}").at(References(ready))
    assert found is not None
    local = found.astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    before = (found - timedelta(seconds=1)).astimezone(ZoneInfo(zone)).replace(tzinfo=None)
    target = datetime.combine(local.date(), by)
    assert before < target <= local
    assert ready < found
    # A day and the longest change of the clocks at most.
    assert found - ready <= timedelta(hours=25)
