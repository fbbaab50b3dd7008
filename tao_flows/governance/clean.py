"""Records without secrets: every text of a record passes here before any document of a bundle is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from enum import Enum
from functools import cache, lru_cache
from math import isfinite
from typing import Any, Final, TypeVar

from tao_flows.redact import MASK, is_secret_name, redact_name, redact_text

T = TypeVar("T")

NAMES: Final = frozenset(
    {
        "boot_id", "flow", "home_pool", "host", "id", "instance", "key", "label", "model_id", "namespace", "owner", "pool",
        "pool_id", "queue", "run_id", "task", "task_label", "zone",
    }
)  # fmt: skip
"""Fields whose text names something: a long run of letters and digits in it is no key. An Airflow run id has one."""
_EXACT: Final = 2**53 - 1
"""The greatest integer that every reader of JSON reads alike (RFC 8785, section 3.2.2.3)."""
_MOST_LEVELS: Final = 40
"""Levels of a request that are kept: a log's line takes no more than 64 in all."""
TOO_DEEP: Final = "(nested too deeply to be kept)"


def clean(record: T) -> T:
    """The same record with what looks like a secret in its texts masked, by rule (``tao_flows.redact``).

    In mappings, such as a decision's request, a text under a name that speaks of a secret is masked whole; so are
    numbers that JSON has no exact form for: those beyond 2^53 become texts, and what is not finite becomes null.
    """
    cleaned: T = _clean(record, "", 0)
    return cleaned


def _clean(value: Any, name: str, level: int) -> Any:
    if isinstance(value, str):
        return value if isinstance(value, Enum) else _name(value) if name in NAMES else _text(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if is_dataclass(value) and not isinstance(value, type):
        changed = {}
        for field in _fields(type(value)):
            old = getattr(value, field)
            new = _clean(old, field, level + 1)
            if new is not old and new != old:
                changed[field] = new
        return replace(value, **changed) if changed else value
    if isinstance(value, Mapping):
        return _mapping(value, level)
    if isinstance(value, (list, tuple)):
        return type(value)(_clean(item, name, level + 1) for item in value)
    return value


@cache
def _fields(cls: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(cls))


def _mapping(value: Mapping[Any, Any], level: int) -> dict[str, Any]:
    if level > _MOST_LEVELS:
        return {TOO_DEEP: True}
    cleaned = {}
    for key, item in value.items():
        name = str(key)
        # The kinds that a request mostly holds are told here: a call for each would take most of the time.
        kind = type(item)
        if kind is float:
            cleaned[_name(name)] = item if isfinite(item) else None
        elif kind is dict:
            cleaned[_name(name)] = _mapping(item, level + 1)
        elif kind is bool or item is None:
            cleaned[_name(name)] = item
        else:
            cleaned[_name(name)] = _member(item, name, level + 1)
    return cleaned


def _member(value: Any, name: str, level: int) -> Any:
    """A value of a mapping, which may hold anything."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int):
        return value if -_EXACT <= value <= _EXACT else str(value)
    if isinstance(value, float):
        return value if isfinite(value) else None
    if isinstance(value, (list, tuple)):
        return TOO_DEEP if level > _MOST_LEVELS else [_member(item, name, level + 1) for item in value]
    if isinstance(value, str) and _is_secret(name):
        return MASK
    return _clean(value, name, level)


# The same few hundred names and words come again in every decision.
_text: Final = lru_cache(maxsize=16_384)(redact_text)
_name: Final = lru_cache(maxsize=16_384)(redact_name)
_is_secret: Final = lru_cache(maxsize=16_384)(is_secret_name)
