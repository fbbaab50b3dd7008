"""A question as JSON, for who decides anew on what waits and has never seen the code that asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, fields
from datetime import datetime, time
from typing import Any, Final

from tao_flows.admission.ask import Ask
from tao_flows.budget import EnergyBudget
from tao_flows.deadline import Deadline
from tao_flows.records import RunKey, Who

_MOMENTS: Final = ("run_start", "queued", "data_interval_end")
_UNSAID: Final = "reaches"
"""What cannot cross processes: whoever decides anew says himself what he can reach."""
_BUDGET: Final = "budget_table"


def ask_json(ask: Ask) -> dict[str, Any]:
    """A question as ``ask_from_json`` reads it; what is as it is by default is left out."""
    given: dict[str, Any] = {}
    for field in fields(Ask):
        value = getattr(ask, field.name)
        if field.name == _UNSAID or value == field.default:
            continue
        if field.name in _MOMENTS:
            value = value.isoformat()
        elif isinstance(value, Deadline):
            value = {**asdict(value), "by": None if value.by is None else value.by.isoformat()}
        elif isinstance(value, EnergyBudget):
            given[_BUDGET] = asdict(value)
            continue
        elif isinstance(value, (RunKey, Who)):
            value = asdict(value)
        given[field.name] = list(value) if isinstance(value, tuple) else value
    return given


def ask_from_json(stored: Mapping[str, Any]) -> Ask:
    """The question of ``ask_json``; what a later version wrote besides is left out.

    Raises:
        InputError: a budget or a deadline in it is malformed.
        KeyError, TypeError, ValueError: it is no such question.
    """
    known = {field.name for field in fields(Ask)} - {_UNSAID}
    given = {name: value for name, value in stored.items() if name in known}
    given["key"] = RunKey(**given["key"])
    if "who" in given:
        given["who"] = Who(**{**given["who"], "tags": tuple(given["who"]["tags"])})
    if (deadline := given.get("deadline")) is not None:
        given["deadline"] = Deadline(**{**deadline, "by": deadline["by"] and time.fromisoformat(deadline["by"])})
    if _BUDGET in stored:
        given["budget"] = EnergyBudget(**stored[_BUDGET])
    for name in _MOMENTS:
        if given.get(name) is not None:
            given[name] = datetime.fromisoformat(given[name])
    plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in given.items()}
    return Ask(**plain)
