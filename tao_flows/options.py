"""What tao-flows adds to a task or flow, checked where it is written."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from tao_flows.budget import EnergyBudget
from tao_flows.deadline import Deadline
from tao_flows.errors import InputError
from tao_flows.records import Who
from tao_flows.tomlfile import did_you_mean
from tao_flows.units import parse_duration_s

Duration = str | float | timedelta
Energy = str | float
OFF: Final = "off"
"""Among options that are written as text: true where the work is to be left alone, neither metered nor decided on."""
TAG_PREFIX: Final = "tao:"
"""What an engine's tag begins with that is an option of ours: ``tao:deadline=2h``, ``tao:deferrable``."""


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
    allowed_orgs: tuple[str, ...] | None = None
    """Other organisations that may be given the work; unless a rule says so, too, none."""
    size: float | None = None
    """How much there is to do, in a unit of the task's own, such as rows: what it costs is learned by it."""
    timeout_s: float | None = None
    """The engine's own time limit, where the adapter applies it around the user's code only."""


def make_options(
    *,
    team: str = "",
    owner: str = "",
    cluster: str = "",
    model_id: str = "",
    tao_tags: Iterable[str] = (),
    budget: str | Energy | EnergyBudget | Mapping[str, Any] | None = None,
    deadline: Duration | Deadline | None = None,
    max_defer: Duration | None = None,
    deferrable: bool | None = None,
    reroutable: bool | None = None,
    allowed_zones: Iterable[str] | None = None,
    requires: Iterable[str] = (),
    allowed_orgs: Iterable[str] | None = None,
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
        allowed_orgs=None if allowed_orgs is None else _texts("allowed_orgs", allowed_orgs),
        size=_size(size),
    )


OPTION_NAMES = frozenset(make_options.__kwdefaults__ or ())
NAMES: Final = tuple(sorted({*OPTION_NAMES, OFF}))
"""Every option that can be written as text."""
_FLAGS: Final = frozenset({"deferrable", "reroutable", OFF})
_LISTS: Final = frozenset({"allowed_orgs", "allowed_zones", "requires", "tao_tags"})


def checked(given: Mapping[str, object]) -> dict[str, Any]:
    """Options as plain JSON, each checked; ``made`` makes ``TaoOptions`` of them.

    Raises:
        InputError: an option is unknown or malformed; one line that names it and the remedy.
    """
    for name in given:
        if name not in NAMES:
            raise InputError("UNKNOWN_OPTION", f"unknown option {name!r}", did_you_mean(str(name), NAMES))
    options = {name: _plain(value) for name, value in given.items()}
    if not isinstance(options.get(OFF, False), bool):
        raise InputError("BAD_OPTION", f"off: {options[OFF]!r} is not True or False", "write off=True")
    made(options)
    return options


def made(options: Mapping[str, Any]) -> TaoOptions:
    """The options of a mapping that may say ``off`` too.

    Raises:
        InputError: one is malformed.
    """
    return make_options(**{name: value for name, value in options.items() if name != OFF})


def of_tag(tag: str) -> dict[str, object]:
    """The option in a tag: ``tao:NAME=VALUE``; of one that is true or false ``tao:NAME`` says true. Not checked yet.

    Raises:
        InputError: there is no such option, or it has no value.
    """
    written, equals, value = tag[len(TAG_PREFIX) :].partition("=")
    name, value = written.strip().replace("-", "_"), value.strip()
    if name not in NAMES:
        raise InputError("UNKNOWN_OPTION", f"tag {tag!r}: unknown option {name!r}", did_you_mean(name, NAMES))
    if name in _FLAGS:
        known = {"": True, "true": True, "false": False}
        return {name: known.get(value.lower(), value)}
    if not equals:
        raise InputError("BAD_OPTION", f"tag {tag!r}: it has no value", f"write {TAG_PREFIX}{name}=...")
    if name in _LISTS:
        return {name: [item.strip() for item in value.split(",") if item.strip()]}
    if name == "size":
        try:
            return {name: float(value)}
        except ValueError:
            pass
    return {name: value}


def of_tags(tags: Iterable[str]) -> dict[str, Any]:
    """The options in all of an engine's tags that are ours, checked; empty where none is.

    Raises:
        InputError: one is unknown or malformed; the message names the tag.
    """
    found: dict[str, Any] = {}
    for tag in sorted(tag for tag in tags if tag.startswith(TAG_PREFIX)):
        try:
            found.update(checked(of_tag(tag)))
        except InputError as error:
            said = error.summary if tag in error.summary else f"tag {tag!r}: {error.summary}"
            raise InputError(error.code, said, error.remedy) from None
    return found


def as_tags(options: TaoOptions) -> tuple[str, ...]:
    """Tags that say what ``options`` say, as ``of_tags`` reads them: for who decides and cannot import the code.

    Raises:
        InputError: a budget is more than a name or a limit, which no tag can say.
    """
    who = options.who
    given: dict[str, object] = {
        **{name: getattr(who, name) for name in ("team", "owner", "cluster", "model_id") if getattr(who, name)},
        **({"tao_tags": who.tags} if who.tags else {}),
        **{
            name: value
            for name in ("deferrable", "reroutable", "allowed_zones", "allowed_orgs", "size")
            if (value := getattr(options, name)) is not None
        },
        **({} if options.deadline is None else {"deadline": _deadline_text(options.deadline)}),
        **({} if options.max_defer_s is None else {"max_defer": f"{_number(options.max_defer_s)}s"}),
        **({"requires": options.requires} if options.requires else {}),
        **({} if options.budget is None else {"budget": _budget_text(options.budget)}),
    }
    return tuple(f"{TAG_PREFIX}{name}={_tag_text(_plain(value))}" for name, value in sorted(given.items()))


def split_options(given: Mapping[str, Any]) -> tuple[TaoOptions, dict[str, Any]]:
    """Ours, checked, and the rest, which is the engine's to accept or refuse."""
    ours = {name: value for name, value in given.items() if name in OPTION_NAMES}
    return make_options(**ours), {name: value for name, value in given.items() if name not in OPTION_NAMES}


def with_changes(options: TaoOptions, given: Mapping[str, Any]) -> tuple[TaoOptions, dict[str, Any]]:
    """``options`` changed by those of ours in ``given``; the rest is the engine's."""
    changed, rest = split_options(given)
    names = {"max_defer": "max_defer_s"}
    who_names = {"team", "owner", "cluster", "model_id", "tao_tags"}
    fields = {names.get(name, name) for name in given if name in OPTION_NAMES and name not in who_names}
    changes = {name: getattr(changed, name) for name in fields}
    return replace(options, who=options.who.overlay(changed.who), **changes), rest


def _deadline_text(deadline: Deadline) -> str:
    if deadline.after_s is None:
        return str(deadline)
    return f"{_number(deadline.after_s)}s" + ("" if deadline.reference == "ready" else f" after {deadline.reference}")


def _budget_text(budget: str | EnergyBudget) -> str:
    if isinstance(budget, str):
        return budget
    if budget.name:
        return budget.name
    plain = EnergyBudget(budget.name, budget.limit_j)
    if budget != plain:
        remedy = 'write it as [budgets.NAME] in the configuration, and budget="NAME" in the code'
        raise InputError("BAD_OPTION", "budget: a budget of the code's own with more than a limit fits no tag", remedy)
    return f"{_number(budget.limit_j)} J"


def _number(value: float) -> str:
    return repr(value).removesuffix(".0")


def _tag_text(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)


def _plain(value: object) -> object:
    """A value as JSON has it, of the same meaning to ``make_options``."""
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Deadline):
        ready_s = value.after_s if value.reference == "ready" else None
        return _deadline_text(value) if ready_s is None else ready_s
    if isinstance(value, EnergyBudget):
        window = value.calendar or value.window_s
        table = {"name": value.name, "limit": value.limit_j, "window": window, "ceiling": value.ceiling_j}
        return {k: v for k, v in (*table.items(), ("timezone", value.timezone), ("scope", value.scope)) if v}
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value


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
    name = ""
    if isinstance(value, Mapping):  # as a table of the configuration, and with a name where it has one
        name = _text("budget: name", value.get("name", ""))
        budget = EnergyBudget.from_table(name or "of the task", {k: v for k, v in value.items() if k != "name"})
    else:
        budget = EnergyBudget.parse("of the task", value)
    # Without a name it is named after the task once that is known.
    return replace(budget, name=name)
