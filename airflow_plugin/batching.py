"""Items that share task instances: which there are, in what groups, and how each ended."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tao_flows import batching
from tao_flows.errors import InputError
from tao_flows.figures import Figure
from tao_flows.records import TaskRecord


@dataclass(frozen=True, slots=True)
class Item:
    """How one item stands after the tries so far."""

    index: int
    """In the whole list, from 0."""
    state: str
    """``success``, ``skipped``, ``failed``; or ``fatal``, failed and not worth another try."""
    instance: int
    """The map index of the task instance that runs it."""
    cpu_s: tuple[tuple[int, float], ...] = ()
    """By number of the try, the CPU seconds of this process, and of the children it waited for, while it ran."""
    result: Any = None
    error: str = ""

    @property
    def finished(self) -> bool:
        """Whether it is not to be run again."""
        return self.state in {"success", "skipped"}

    def to_json(self) -> dict[str, Any]:
        """What ``from_json`` reads; the result as it is."""
        names = ("index", "state", "instance", "result", "error")
        return {**{name: getattr(self, name) for name in names}, "cpu_s": [list(pair) for pair in self.cpu_s]}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Item:
        """The item of ``to_json``."""
        return cls(**{**stored, "cpu_s": tuple((int(number), float(cpu_s)) for number, cpu_s in stored["cpu_s"])})


def all_items(mapped: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The arguments of every item, in the order of Airflow's map indexes.

    Args:
        mapped: by argument its values, of which every combination is an item, the last argument's changing first; or
            the items' own arguments.

    Raises:
        InputError: something in it is no list.
    """
    if not isinstance(mapped, Mapping):
        return [dict(item) for item in mapped]
    for name, values in mapped.items():
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            remedy = "map over a list, a dict, or the result of a task that returns one"
            raise InputError("NOT_MAPPABLE", f"{name}: a value of type {type(values).__name__} is no list", remedy)
    columns = [list(v.items() if isinstance(v, Mapping) else v) for v in mapped.values()]
    return [dict(zip(mapped, row, strict=True)) for row in itertools.product(*columns)]


def batches(items: Sequence[Mapping[str, Any]], size: int) -> list[dict[str, Any]]:
    """Items in groups, each with the index of its first."""
    return [{"first": first, "items": list(items[first : first + size])} for first in range(0, len(items), size)]


def failure(failed: Sequence[Item], arguments: Mapping[int, Mapping[str, Any]], of: int) -> str:
    """One line that names the items that failed, and why.

    Args:
        failed: those.
        arguments: of each, by its index.
        of: how many there were.
    """
    return batching.failure(((item.index, arguments[item.index], item.error) for item in failed), of)


def energies(items: Sequence[Item], records: Iterable[TaskRecord]) -> list[Figure]:
    """The joules of each item, as ``tao_flows.batching.shares`` has it.

    Args:
        items: those of a run.
        records: of the task that ran them.
    """
    return batching.shares([{(str(item.instance), tried): s for tried, s in item.cpu_s} for item in items], records)
