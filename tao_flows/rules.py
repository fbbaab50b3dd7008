"""Rules: which flows and DAGs are off, observed, advised or enforced, and under which budgets.

An operator writes them as ``[[rules]]`` tables, in order. A rule matches when each of its matchers does, and for each
effect the first matching rule that gives it decides. Rules can only lower the global mode, so that lowering it is
enough to stop every action.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from fnmatch import translate
from functools import cache
from typing import Any, Final, Literal, TypeVar, get_args

from tao_flows.deadline import Deadline
from tao_flows.errors import InputError
from tao_flows.tomlfile import did_you_mean
from tao_flows.units import parse_duration_s

T = TypeVar("T")

Mode = Literal["off", "observe", "advise", "enforce"]
"""off: nothing is done; observe: meter and record decisions; advise: also say them; enforce: also act on them."""
MODES: Final[tuple[Mode, ...]] = get_args(Mode)
"""From the one that does least to the one that does most."""
ENGINES: Final = ("airflow", "prefect")
TRIGGERS: Final = ("scheduled", "manual", "backfill", "asset", "event")
"""What starts a run: a timetable, a person, a backfill, a change of data, or an event outside."""
EXEMPT_TRIGGERS: Final = ("manual", "backfill")
"""Runs that someone waits for, or that would flood a budget: observed unless a rule names their trigger."""
_KEPT: Final = 4096
"""Rulings remembered, so that a mapped task is ruled on once."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What a ruling is about, as its engine knows it, and what its code says itself. Empty and None: not said."""

    engine: str
    flow: str
    """The name of the flow, or the id of the DAG."""
    task: str = ""
    tags: tuple[str, ...] = ()
    owner: str = ""
    operator: str = ""
    """Airflow's operator class."""
    pool: str = ""
    trigger: str = ""
    """One of ``TRIGGERS``."""
    sensor: bool = False
    """It only waits for something."""
    deferrable: bool | None = None
    reroutable: bool | None = None
    budgeted: bool = False
    """Its code names a budget."""
    max_defer_s: float | None = None
    allowed_orgs: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Because:
    """Why one effect is what it is."""

    effect: str
    rule: int | None
    """The number of the rule that decided, from 1; None where none did."""
    why: str


@dataclass(frozen=True, slots=True)
class Ruling:
    """What holds for a subject."""

    mode: Mode
    budgets: tuple[str, ...] = ()
    """Budgets it is under by a rule, besides those that it names itself and those whose scope it is in."""
    deferrable: bool = False
    reroutable: bool = False
    max_defer_s: float = 0.0
    deadline: Deadline | None = None
    """By a rule; of this and the code's own the earlier holds (``deadline.earliest``)."""
    allowed_orgs: tuple[str, ...] = ()
    """Other organisations that may be given the work: where code and a rule name some, those that both name."""
    because: tuple[Because, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The form that ``tao-flows rules explain --json`` prints."""
        return {
            "mode": self.mode,
            "budgets": list(self.budgets),
            "deferrable": self.deferrable,
            "reroutable": self.reroutable,
            "max_defer_s": self.max_defer_s,
            "deadline": None if self.deadline is None else str(self.deadline),
            "allowed_orgs": list(self.allowed_orgs),
            "because": [{"effect": each.effect, "rule": each.rule, "why": each.why} for each in self.because],
        }


@dataclass(frozen=True, slots=True)
class Rule:
    """One ``[[rules]]`` table. Matchers are shell patterns, any of which may match; empty: not asked."""

    engine: tuple[str, ...] = ()
    name: tuple[str, ...] = ()
    task: tuple[str, ...] = ()
    tag: tuple[str, ...] = ()
    owner: tuple[str, ...] = ()
    operator: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    trigger: tuple[str, ...] = ()
    mode: Mode | None = None
    budgets: tuple[str, ...] | None = None
    deferrable: bool | None = None
    reroutable: bool | None = None
    max_defer_s: float | None = None
    deadline: Deadline | None = None
    allowed_orgs: tuple[str, ...] | None = None
    explain: str = ""
    """Said wherever the rule decides."""

    def to_json(self) -> dict[str, Any]:
        """What the rule gives, as its table is written; durations are seconds."""
        given = {each.name: getattr(self, each.name) for each in fields(self)}
        unsaid = {each.name: each.default for each in fields(self)}
        return {name: _plain(value) for name, value in given.items() if value != unsaid[name]}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.to_json().items())

    def matches(self, subject: Subject) -> bool:
        """Whether every matcher given fits. What a subject does not say fits none."""
        for matcher, attribute in MATCHERS.items():
            if patterns := getattr(self, matcher):
                said = getattr(subject, attribute)
                fits = _compiled(patterns).fullmatch
                if not any(text and fits(text) for text in (said if isinstance(said, tuple) else (said,))):
                    return False
        return True

    def names(self, subject: Subject) -> bool:
        """Whether it is written for what exempts the subject, and so may do more than observe it."""
        if subject.trigger in EXEMPT_TRIGGERS and not self.trigger:
            return False
        # Every operator matches a bare "*": that names none.
        return not subject.sensor or any(pattern.strip("*?") for pattern in self.operator)


MATCHERS: Final[Mapping[str, str]] = {
    "engine": "engine",
    "name": "flow",
    "task": "task",
    "tag": "tags",
    "owner": "owner",
    "operator": "operator",
    "pool": "pool",
    "trigger": "trigger",
}
"""By matcher, the field of a subject that it looks at."""
EFFECTS: Final = ("mode", "budgets", "deferrable", "reroutable", "max_defer", "deadline", "allowed_orgs")


@dataclass(frozen=True, slots=True)
class Rules:
    """Rules in order. ``ruling`` is pure, and remembered by subject."""

    items: tuple[Rule, ...] = ()
    _kept: dict[tuple[Subject, Mode], Ruling] = field(default_factory=dict, compare=False, repr=False)

    def ruling(self, subject: Subject, mode: Mode) -> Ruling:
        """What holds for ``subject`` where the global mode is ``mode``."""
        known = self._kept.get((subject, mode))
        if known is None:
            if len(self._kept) >= _KEPT:
                self._kept.clear()
            known = self._kept[subject, mode] = _rule_on(subject, mode, self.items)
        return known

    def to_json(self) -> list[dict[str, Any]]:
        """The rules, in order."""
        return [rule.to_json() for rule in self.items]

    @classmethod
    def parse(cls, value: object) -> Rules:
        """Rules from the tables of a settings file.

        Raises:
            InputError: BAD_RULE, a table has an unknown key or a wrong value; the message names rule and key.
        """
        if isinstance(value, Rules):
            return value
        if not isinstance(value, (list, tuple)):
            raise InputError("BAD_RULE", f"{value!r} is not a list of tables", "write each rule as a [[rules]] table")
        return cls(tuple(_parse_rule(number, entry) for number, entry in enumerate(value, start=1)))


def _rule_on(subject: Subject, mode: Mode, rules: tuple[Rule, ...]) -> Ruling:
    matching = [(number, rule) for number, rule in enumerate(rules, start=1) if rule.matches(subject)]
    deferrable, why_deferrable = _permission("deferrable", subject.deferrable, matching)
    reroutable, why_reroutable = _permission("reroutable", subject.reroutable, matching)
    budgets, why_budgets = _first("budgets", matching, lambda rule: rule.budgets)
    max_defer_s, why_max_defer = _first("max_defer", matching, lambda rule: rule.max_defer_s)
    deadline, why_deadline = _first("deadline", matching, lambda rule: rule.deadline)
    if subject.max_defer_s is not None and (max_defer_s is None or subject.max_defer_s < max_defer_s):
        max_defer_s, why_max_defer = subject.max_defer_s, Because("max_defer", None, "the code's own")
    allowed_orgs, why_orgs = _orgs(subject, matching)
    opted_in = deferrable or reroutable or subject.budgeted or bool(budgets)
    chosen, why_mode = _mode(subject, mode, matching, opted_in=opted_in)
    return Ruling(
        mode=chosen,
        budgets=budgets or (),
        deferrable=deferrable,
        reroutable=reroutable,
        max_defer_s=max_defer_s or 0.0,
        deadline=deadline,
        allowed_orgs=allowed_orgs,
        because=(why_mode, why_budgets, why_deferrable, why_reroutable, why_max_defer, why_deadline, why_orgs),
    )


_Matching = list[tuple[int, Rule]]


def _mode(subject: Subject, ceiling: Mode, matching: _Matching, *, opted_in: bool) -> tuple[Mode, Because]:
    if ceiling == "off":
        return "off", Because("mode", None, "the global mode is off, whatever the rules say")
    # A rule that does more than observe passes over what is exempt, unless it was written for it.
    deciding = [
        (number, rule)
        for number, rule in matching
        if rule.mode is not None and (_rank(rule.mode) <= _rank("observe") or rule.names(subject))
    ]
    wanted: Mode = ceiling
    because = Because("mode", None, "the global mode")
    if deciding:
        number, rule = deciding[0]
        wanted, because = rule.mode or ceiling, _by_rule("mode", number, rule)
        opted_in = opted_in or wanted == "enforce"
    elif (exemption := _exemption(subject)) is not None:
        wanted, because = "observe", Because("mode", None, f"{exemption} is observed unless a rule names it")
    if _rank(wanted) > _rank(ceiling):
        why = f"the global mode, which lowers the {wanted} of {because.why}"
        wanted, because = ceiling, Because("mode", because.rule, why)
    if wanted == "enforce" and not opted_in:
        return "advise", Because("mode", because.rule, "neither its code nor a rule has opted in to be acted on")
    return wanted, because


def _exemption(subject: Subject) -> str | None:
    if subject.trigger in EXEMPT_TRIGGERS:
        return "a manual run" if subject.trigger == "manual" else f"a {subject.trigger}"
    return "a sensor" if subject.sensor else None


def _rank(mode: Mode) -> int:
    return MODES.index(mode)


def _permission(effect: str, in_code: bool | None, matching: _Matching) -> tuple[bool, Because]:
    """Code and rules may each permit, and each forbid: a file that one task hands the next is known to its author."""
    by_rule, because = _first(effect, matching, lambda rule: getattr(rule, effect))
    if in_code is False or (in_code and by_rule is None):
        return in_code, Because(effect, None, "the code's own")
    return bool(by_rule), because


def _orgs(subject: Subject, matching: _Matching) -> tuple[tuple[str, ...], Because]:
    """Whom work may be given to: nobody unless code or a rule says so, and where both do, whom both name."""
    by_rule, because = _first("allowed_orgs", matching, lambda rule: rule.allowed_orgs)
    in_code = subject.allowed_orgs
    if in_code is None:
        return by_rule or (), because
    if by_rule is None:
        return in_code, Because("allowed_orgs", None, "the code's own")
    return tuple(org for org in in_code if org in by_rule), because


def _first(effect: str, matching: _Matching, give: Callable[[Rule], T | None]) -> tuple[T | None, Because]:
    for number, rule in matching:
        value = give(rule)
        if value is not None:
            return value, _by_rule(effect, number, rule)
    return None, Because(effect, None, "no rule says")


def _by_rule(effect: str, number: int, rule: Rule) -> Because:
    return Because(effect, number, f"rule {number}" + (f" ({rule.explain})" if rule.explain else ""))


@cache
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    return re.compile("|".join(map(translate, patterns)))


def _parse_rule(number: int, entry: object) -> Rule:
    where = f"rule {number}"
    if not isinstance(entry, Mapping):
        raise InputError("BAD_RULE", f"{where}: {entry!r} is not a table", "write each rule as a [[rules]] table")
    given: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in _PARSERS:
            raise InputError("BAD_RULE", f"{where}: unknown key {key!r}", did_you_mean(str(key), _PARSERS))
        try:
            given["max_defer_s" if key == "max_defer" else key] = _PARSERS[key](value)
        except InputError as error:
            raise InputError("BAD_RULE", f"{where}: {key}: {error.summary}", error.remedy) from None
    if not given.keys() & MATCHERS.keys():
        raise InputError(
            "BAD_RULE", f"{where} does not say what it is for", 'add name = "..."; all flows are name = "*"'
        )
    if not entry.keys() & set(EFFECTS):
        raise InputError("BAD_RULE", f"{where} does not say what holds", f"add one of {', '.join(EFFECTS)}")
    return Rule(**given)


def _plain(value: object) -> object:
    if isinstance(value, tuple):
        return list(value)
    return str(value) if isinstance(value, Deadline) else value


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError("BAD_RULE", f"{value!r} is not a text", 'write it in quotes: "..."')
    return value.strip()


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, (list, tuple)):
        return tuple(_text(item) for item in value)
    return (_text(value),)


def _patterns(value: object) -> tuple[str, ...]:
    patterns = _texts(value)
    if not patterns:
        raise InputError("BAD_RULE", "an empty list matches nothing", "name what it is for, or leave the key out")
    return patterns


def _words(known: tuple[str, ...]) -> Callable[[object], tuple[str, ...]]:
    def parse(value: object) -> tuple[str, ...]:
        for word in _patterns(value):
            if word not in known:
                raise InputError("BAD_RULE", f"{word!r} is not one of {', '.join(known)}", did_you_mean(word, known))
        return _patterns(value)

    return parse


def _one_mode(value: object) -> Mode:
    for mode in MODES:
        if isinstance(value, str) and value.strip().lower() == mode:
            return mode
    raise InputError("BAD_RULE", f"{value!r} is not one of {', '.join(MODES)}", did_you_mean(str(value), MODES))


def _truth(value: object) -> bool:
    if not isinstance(value, bool):
        raise InputError("BAD_RULE", f"{value!r} is neither true nor false", "write true or false, without quotes")
    return value


_PARSERS: Final[Mapping[str, Callable[[object], object]]] = {
    **dict.fromkeys(MATCHERS, _patterns),
    "engine": _words(ENGINES),
    "trigger": _words(TRIGGERS),
    "mode": _one_mode,
    "budgets": _texts,
    "deferrable": _truth,
    "reroutable": _truth,
    "max_defer": parse_duration_s,
    "deadline": Deadline.parse,
    "allowed_orgs": _texts,
    "explain": _text,
}
