"""What tao-flows adds to a task or flow, checked where it is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from tao_flows.budget import EnergyBudget
from tao_flows.deadline import Deadline
from tao_flows.errors import InputError
from tao_flows.records import Who
from tao_flows.units import parse_duration_s

Duration = str | float | timedelta
Energy = str | float


@dataclass(frozen=True)
class TaoOptions:
    """The options of one task or flow. Durations are seconds; None means not given."""

    who: Who = Who()
    budget: str | EnergyBudget | None = None
    """A budget's name in the configuration, or a budget of this task's own."""
    deadline: Deadline | None = None
    """By when the task must have ended."""
    max_defer_s: float | None = None
    deferrable: bool | None = None
    reroutable: bool | None = None
    allowed_zones: tuple[str, ...] | None = None
    requires: tuple[str, ...] = ()
    size: float | None = None
    """How much there is to do, in a unit of the task's own, such as rows: what it costs is learned by it."""
    timeout_s: float | None = None
    """Prefect's ``timeout_seconds``, applied around the user's function only."""


def make_options(
    *,
    team: str = "",
    owner: str = "",
    cluster: str = "",
    model_id: str = "",
    tao_tags: Iterable[str] = (),
    budget: str | Energy | EnergyBudget | None = None,
    deadline: Duration | Deadline | None = None,
    max_defer: Duration | None = None,
    deferrable: bool | None = None,
    reroutable: bool | None = None,
    allowed_zones: Iterable[str] | None = None,
    requires: Iterable[str] = (),
    size: float | None = None,
) -> TaoOptions:
    """Checks what was written in a decorator.

    Raises:
        InputError: a value is malformed; the message names the option and the remedy.
    """
    for name, flag in (("deferrable", deferrable), ("reroutable", reroutable)):
        if flag is not None and not isinstance(flag, bool):
            raise InputError("BAD_OPTION", f"{name}: {flag!r} is not True or False", f"write {name}=True")
    return TaoOptions(
        who=Who(
            team=_text("team", team),
            owner=_text("owner", owner),
            cluster=_text("cluster", cluster),
            model_id=_text("model_id", model_id),
            tags=_texts("tao_tags", tao_tags),
        ),
        budget=_budget(budget),
        deadline=None if deadline is None else Deadline.parse(deadline),
        max_defer_s=None if max_defer is None else parse_duration_s(max_defer, what="max_defer"),
        deferrable=deferrable,
        reroutable=reroutable,
        allowed_zones=None if allowed_zones is None else _texts("allowed_zones", allowed_zones),
        requires=_texts("requires", requires),
        size=_size(size),
    )


OPTION_NAMES = frozenset(make_options.__kwdefaults__ or ())


def split_options(given: Mapping[str, Any]) -> tuple[TaoOptions, dict[str, Any]]:
    """Ours, checked, and the rest, which is Prefect's to accept or refuse."""
    ours = {name: value for name, value in given.items() if name in OPTION_NAMES}
    return make_options(**ours), {name: value for name, value in given.items() if name not in OPTION_NAMES}


def with_changes(options: TaoOptions, given: Mapping[str, Any]) -> tuple[TaoOptions, dict[str, Any]]:
    """``options`` changed by those of ours in ``given``; the rest is Prefect's."""
    changed, rest = split_options(given)
    names = {"max_defer": "max_defer_s"}
    who_names = {"team", "owner", "cluster", "model_id", "tao_tags"}
    fields = {names.get(name, name) for name in given if name in OPTION_NAMES and name not in who_names}
    changes = {name: getattr(changed, name) for name in fields}
    return replace(options, who=options.who.overlay(changed.who), **changes), rest


def _text(name: str, value: object) -> str:
    if not isinstance(value, str):
        raise InputError("BAD_OPTION", f"{name}: {value!r} is not a text", f'write {name}="..."')
    return value


def _texts(name: str, values: object) -> tuple[str, ...]:
    if isinstance(values, str) or not isinstance(values, Iterable):
        raise InputError("BAD_OPTION", f"{name}: {values!r} is not a list of texts", f'write {name}=["..."]')
    return tuple(_text(name, value) for value in values)


def _size(value: object) -> float | None:
    if value is None:
        return None
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < math.inf:
        return float(value)
    raise InputError("BAD_OPTION", f"size: {value!r} is not a number of 0 or more", "write size=1000")


def _budget(value: object) -> str | EnergyBudget | None:
    if value is None or isinstance(value, EnergyBudget):
        return value
    if isinstance(value, str) and value and value[0].isalpha():
        return value
    # It is named after the task once that is known.
    return replace(EnergyBudget.parse("of the task", value), name="")
