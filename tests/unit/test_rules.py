from __future__ import annotations

import pickle
from dataclasses import replace
from typing import Any

import pytest

from tao_flows.config import load_config
from tao_flows.deadline import Deadline
from tao_flows.errors import ConfigError, InputError
from tao_flows.rulecheck import check
from tao_flows.rules import Mode, Rules, Ruling, Subject

SUBJECT = Subject(
    engine="airflow", flow="nightly", task="train", tags=("ml", "team:a"), owner="ada", operator="BashOperator",
    pool="gpu", trigger="scheduled",
)  # fmt: skip


def rule_on(*tables: dict[str, Any], mode: Mode = "enforce", **changes: Any) -> Ruling:
    return Rules.parse(list(tables)).ruling(replace(SUBJECT, **changes), mode)


def why(ruling: Ruling, effect: str) -> tuple[int | None, str]:
    (because,) = [each for each in ruling.because if each.effect == effect]
    return because.rule, because.why


def test_a_task_that_nobody_opted_in_is_advised_at_most() -> None:
    ruling = rule_on()
    assert ruling.mode == "advise"
    assert why(ruling, "mode") == (None, "neither its code nor a rule has opted in to be acted on")


@pytest.mark.parametrize("said", [{"deferrable": True}, {"reroutable": True}, {"budgeted": True}])
def test_a_task_that_opted_in_in_its_code_is_enforced_under_the_global_mode(said: dict[str, Any]) -> None:
    assert rule_on(**said).mode == "enforce"
    assert rule_on(mode="advise", **said).mode == "advise"


@pytest.mark.parametrize(
    "effect", [{"mode": "enforce"}, {"deferrable": True}, {"reroutable": True}, {"budgets": ["team-a"]}]
)
def test_a_rule_that_names_a_task_opts_it_in(effect: dict[str, Any]) -> None:
    assert rule_on({"name": "nightly", **effect}).mode == "enforce"
    assert rule_on({"name": "weekly", **effect}).mode == "advise"


def test_a_rule_that_permits_nothing_opts_nothing_in() -> None:
    assert rule_on({"name": "nightly", "deferrable": False, "budgets": [], "max_defer": "1h"}).mode == "advise"


@pytest.mark.parametrize("mode", ["off", "observe", "advise", "enforce"])
def test_a_rule_never_raises_the_global_mode(mode: Mode) -> None:
    ruling = rule_on({"name": "*", "mode": "enforce", "deferrable": True}, mode=mode, deferrable=True)
    assert ruling.mode == mode


def test_the_kill_switch_beats_every_rule() -> None:
    ruling = rule_on({"name": "nightly", "mode": "enforce"}, mode="off", deferrable=True)
    assert ruling.mode == "off"
    assert why(ruling, "mode") == (None, "the global mode is off, whatever the rules say")


def test_a_rule_lowers_the_mode_of_what_it_names_even_where_its_code_opted_in() -> None:
    rules = {"name": "nightly", "mode": "observe"}, {"name": "weekly", "mode": "off"}
    assert rule_on(*rules, deferrable=True).mode == "observe"
    assert rule_on(*rules, flow="weekly").mode == "off"


@pytest.mark.parametrize("exempt", [{"trigger": "manual"}, {"trigger": "backfill"}, {"sensor": True}])
def test_manual_runs_backfills_and_sensors_are_only_observed(exempt: dict[str, Any]) -> None:
    assert rule_on(deferrable=True, **exempt).mode == "observe"
    assert rule_on({"name": "*", "mode": "enforce"}, **exempt).mode == "observe"
    assert rule_on({"name": "*", "mode": "advise"}, **exempt).mode == "observe"
    assert rule_on({"name": "*", "operator": "*", "mode": "enforce"}, sensor=True).mode == "observe"
    assert rule_on({"name": "*", "mode": "off"}, **exempt).mode == "off"


def test_a_rule_that_names_the_trigger_or_the_operator_lifts_the_exemption() -> None:
    by_trigger = {"trigger": ["manual", "backfill"], "mode": "enforce"}
    by_operator = {"operator": "*Sensor", "mode": "enforce"}
    sensor = {"sensor": True, "operator": "S3KeySensor"}
    assert rule_on(by_trigger, trigger="manual").mode == "enforce"
    assert rule_on(by_trigger, trigger="backfill").mode == "enforce"
    assert rule_on(by_operator, **sensor).mode == "enforce"
    assert rule_on(by_operator, **sensor, trigger="manual").mode == "observe"
    assert rule_on({**by_trigger, **by_operator}, **sensor, trigger="manual").mode == "enforce"


def test_a_rule_for_all_runs_passes_over_a_manual_one_to_the_rule_that_names_it() -> None:
    rules = {"name": "nightly", "mode": "enforce"}, {"trigger": "manual", "mode": "advise"}
    manual = rule_on(*rules, trigger="manual")
    assert (manual.mode, why(manual, "mode")) == ("advise", (2, "rule 2"))
    assert rule_on(*rules).mode == "enforce"


def test_the_first_rule_that_gives_an_effect_decides_it_each_for_itself() -> None:
    ruling = rule_on(
        {"task": "train", "max_defer": "1h"},
        {"name": "nightly", "max_defer": "3h", "budgets": ["team-a"], "explain": "agreed with team A"},
        {"name": "*", "budgets": ["rest"], "deadline": "4h", "reroutable": True},
    )
    assert (ruling.max_defer_s, ruling.budgets, ruling.reroutable) == (3_600.0, ("team-a",), True)
    assert ruling.deadline == Deadline(after_s=14_400.0)
    assert why(ruling, "max_defer") == (1, "rule 1")
    assert why(ruling, "budgets") == (2, "rule 2 (agreed with team A)")
    assert why(ruling, "deferrable") == (None, "no rule says")


@pytest.mark.parametrize(
    ("matcher", "fits", "fails"),
    [
        ("engine", "airflow", "prefect"),
        ("name", "night*", "day*"),
        ("name", ["weekly", "n?ghtly"], ["Nightly", "nightl"]),
        ("task", "t[pr]ain", "t[!r]ain"),
        ("tag", "team:*", "team"),
        ("owner", "ada", "bob"),
        ("operator", "Bash*", "*Sensor"),
        ("pool", ["cpu", "gpu"], "cpu"),
        ("trigger", ["asset", "scheduled"], "asset"),
    ],
)
def test_each_matcher_looks_at_its_own_field(matcher: str, fits: object, fails: object) -> None:
    assert rule_on({matcher: fits, "mode": "off"}).mode == "off"
    assert rule_on({matcher: fails, "mode": "off"}).mode == "advise"


def test_every_matcher_given_must_match() -> None:
    assert rule_on({"name": "nightly", "owner": "bob", "mode": "off"}).mode == "advise"
    assert rule_on({"name": "nightly", "owner": "a*", "mode": "off"}).mode == "off"


def test_what_an_engine_does_not_say_is_matched_by_nothing() -> None:
    nothing_said = dict.fromkeys(("task", "owner", "operator", "pool", "trigger"), "") | {"tags": ()}
    for matcher in ("task", "tag", "owner", "operator", "pool"):
        assert rule_on({matcher: "*", "mode": "off"}, **nothing_said).mode == "advise"


@pytest.mark.parametrize(
    ("in_code", "by_rule", "permitted"),
    [
        (None, None, False),
        (None, True, True),
        (True, None, True),
        (True, True, True),
        (None, False, False),
        (True, False, False),
        (False, True, False),
        (False, None, False),
    ],
)
def test_code_and_rules_may_each_permit_and_each_forbid(
    in_code: bool | None, by_rule: bool | None, permitted: bool
) -> None:
    for effect in ("deferrable", "reroutable"):
        table = {"name": "*", "mode": "enforce"} | ({} if by_rule is None else {effect: by_rule})
        assert getattr(rule_on(table, **{effect: in_code}), effect) is permitted


def test_the_shorter_of_two_longest_delays_holds() -> None:
    table = {"name": "*", "max_defer": "1h"}
    assert rule_on(table).max_defer_s == 3_600.0
    assert rule_on(table, max_defer_s=60.0).max_defer_s == 60.0
    assert rule_on(table, max_defer_s=7_200.0).max_defer_s == 3_600.0
    assert rule_on(max_defer_s=60.0).max_defer_s == 60.0
    assert rule_on().max_defer_s == 0.0


def test_a_ruling_is_the_same_however_often_and_after_a_copy() -> None:
    rules = Rules.parse([{"name": "night*", "mode": "enforce"}])
    first = rules.ruling(SUBJECT, "enforce")
    assert rules.ruling(SUBJECT, "enforce") is first
    assert rules.ruling(SUBJECT, "observe").mode == "observe"
    for number in range(5_000):  # more than are remembered
        assert rules.ruling(replace(SUBJECT, flow=f"day-{number}"), "enforce").mode == "advise"
    assert rules.ruling(SUBJECT, "enforce") == first
    assert pickle.loads(pickle.dumps(rules)) == rules


@pytest.mark.parametrize(
    ("tables", "said"),
    [
        ("nightly", "'nightly' is not a list of tables (write each rule as a [[rules]] table)"),
        (["nightly"], "rule 1: 'nightly' is not a table"),
        ([{"name": "a", "mode": "off"}, {"nmae": "a"}], "rule 2: unknown key 'nmae' (did you mean 'name'?)"),
        ([{"mode": "off"}], 'rule 1 does not say what it is for (add name = "..."; all flows are name = "*")'),
        ([{"name": "a", "explain": "why"}], "rule 1 does not say what holds (add one of mode, budgets"),
        ([{"name": "a", "mode": "enforced"}], "rule 1: mode: 'enforced' is not one of off, observe, advise, enforce"),
        ([{"name": [], "mode": "off"}], "rule 1: name: an empty list matches nothing"),
        ([{"name": 3, "mode": "off"}], "rule 1: name: 3 is not a text"),
        ([{"name": [""], "mode": "off"}], "rule 1: name: '' is not a text"),
        ([{"engine": "prefct", "mode": "off"}], "engine: 'prefct' is not one of airflow, prefect (did you mean"),
        ([{"trigger": "manuel", "mode": "off"}], "trigger: 'manuel' is not one of scheduled, manual"),
        ([{"name": "a", "deferrable": "yes"}], "rule 1: deferrable: 'yes' is neither true nor false"),
        ([{"name": "a", "max_defer": "soon"}], "rule 1: max_defer: duration: 'soon' is not a duration"),
        ([{"name": "a", "deadline": "by 6"}], "rule 1: deadline: deadline: 'by 6' names no time of day"),
    ],
)
def test_a_bad_rule_is_told_by_its_number_and_key(tables: object, said: str) -> None:
    with pytest.raises(InputError) as caught:
        Rules.parse(tables)
    assert caught.value.code == "BAD_RULE"
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_rules_are_a_setting_of_the_file(tmp_path: Any) -> None:
    (tmp_path / "tao-flows.toml").write_text(
        '[[rules]]\nname = "a"\nmode = "off"\n[[rules]]\ntag = "b"\nmode = "off"\n'
    )
    resolved = load_config(env={"HOME": str(tmp_path)}, cwd=tmp_path)
    assert resolved.origins["rules"] == str(tmp_path / "tao-flows.toml")
    assert resolved.config.rules == Rules.parse([{"name": "a", "mode": "off"}, {"tag": "b", "mode": "off"}])
    again = load_config(env={"HOME": str(tmp_path)}, engine={"rules": resolved.config.rules}, cwd=tmp_path / "none")
    assert again.config.rules == resolved.config.rules
    (tmp_path / "tao-flows.toml").write_text('[[rules]]\nname = "a"\nmood = "off"\n')
    with pytest.raises(
        ConfigError, match=r"tao-flows.toml: rules: rule 1: unknown key 'mood' \(did you mean 'mode'\?\)"
    ):
        load_config(env={"HOME": str(tmp_path)}, cwd=tmp_path)


def notes(*tables: dict[str, Any], mode: Mode = "enforce", budgets: tuple[str, ...] = ()) -> list[tuple[int, str]]:
    return [(note.rule, note.code) for note in check(Rules.parse(list(tables)), mode, budgets)]


def test_rules_without_anything_odd_have_no_notes() -> None:
    assert (
        notes({"name": "a*", "mode": "off"}, {"name": "b", "mode": "enforce"}, {"name": "*", "mode": "observe"}) == []
    )


@pytest.mark.parametrize("effect", [{"mode": "enforce"}, {"deferrable": True}, {"budgets": "a"}])
def test_a_rule_that_opts_everything_in_is_noted(effect: dict[str, Any]) -> None:
    assert notes({"name": "*", **effect}, budgets=("a",)) == [(1, "CATCH_ALL")]
    assert notes({"name": ["x", "*"], **effect}, budgets=("a",)) == []
    assert notes({"name": "*", "owner": "ada", **effect}, budgets=("a",)) == []


def test_a_rule_that_can_never_match_is_noted() -> None:
    assert notes({"engine": "prefect", "operator": "Bash*", "mode": "off"}) == [(1, "NEVER_MATCHES")]
    assert notes({"engine": ["airflow", "prefect"], "operator": "Bash*", "mode": "off"}) == []


def test_a_mode_above_the_global_one_is_noted() -> None:
    assert notes({"name": "a", "mode": "enforce"}, mode="observe") == [(1, "ABOVE_MODE")]


def test_a_budget_that_is_not_configured_is_noted() -> None:
    assert notes({"name": "a", "budgets": ["x", "y"]}, budgets=("x",)) == [(1, "UNKNOWN_BUDGET")]


@pytest.mark.parametrize(
    ("first", "second", "shadowed"),
    [
        ({"name": "*", "mode": "off"}, {"name": "a", "mode": "observe"}, True),
        ({"name": "*", "mode": "off"}, {"task": "a", "mode": "observe"}, True),
        ({"name": "a*", "mode": "off"}, {"name": ["ab", "a*c"], "owner": "x", "mode": "off"}, True),
        ({"name": ["x", "a*"], "mode": "off"}, {"name": ["x", "ab"], "mode": "off"}, True),
        ({"name": "a*", "mode": "off"}, {"name": ["ab", "b"], "mode": "off"}, False),
        ({"name": "a*", "mode": "off"}, {"name": "*", "mode": "off"}, False),
        ({"name": "a?", "mode": "off"}, {"name": "a*", "mode": "off"}, False),
        ({"name": "a[bc]", "mode": "off"}, {"name": "a[bc]", "mode": "off"}, True),
        ({"name": "*b*", "mode": "off"}, {"name": "x[ab]", "mode": "off"}, False),
        ({"task": "*", "mode": "off"}, {"name": "a", "mode": "off"}, False),
        ({"name": "*", "max_defer": "1h"}, {"name": "a", "mode": "off"}, False),
        ({"name": "*", "max_defer": "1h"}, {"name": "a", "max_defer": "2h"}, True),
        # What a rule passes over as exempt is left to those that name it.
        ({"name": "*", "owner": "x", "mode": "enforce"}, {"name": "a", "owner": "x", "mode": "off"}, True),
        ({"owner": "x", "mode": "advise"}, {"owner": "x", "trigger": "manual", "mode": "advise"}, False),
        ({"owner": "x", "mode": "off"}, {"owner": "x", "trigger": "manual", "mode": "advise"}, True),
        ({"owner": "x", "mode": "advise"}, {"owner": "x", "trigger": "scheduled", "mode": "advise"}, True),
        ({"owner": "x", "mode": "advise"}, {"owner": "x", "operator": "*Sensor", "mode": "advise"}, False),
        ({"trigger": "manual", "mode": "advise"}, {"trigger": "manual", "owner": "x", "mode": "advise"}, True),
    ],
)
def test_a_rule_that_an_earlier_one_leaves_nothing_to_decide_is_noted(
    first: dict[str, Any], second: dict[str, Any], shadowed: bool
) -> None:
    assert ((2, "SHADOWED") in notes(first, second)) is shadowed


def test_a_note_of_a_shadow_names_the_effects_and_the_earlier_rule() -> None:
    rules = Rules.parse([{"name": "*", "owner": "x", "mode": "advise"}, {"owner": "x", "mode": "off", "max_defer": 1}])
    (note,) = check(rules, "enforce", ())
    assert note.text == "mode: rule 1 comes first and matches all that rule 2 does, exempt runs and sensors aside"
