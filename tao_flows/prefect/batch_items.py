"""What goes into a batch, and what comes out of it: plain classes, which Prefect does not look for futures in."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, replace
from typing import Any, Final

import cloudpickle  # type: ignore[import-untyped]

from tao_flows.options import TaoOptions
from tao_flows.prefect._compat import State, Task
from tao_flows.prefect.batch_kept import Kept

PLAIN_TYPES: Final = frozenset({int, float, str, bool, bytes, complex, type(None)})
"""Values of these hold no futures, and pickle the same in any way."""


@dataclass(slots=True)
class Outcome:
    """What one item has come to."""

    value: Any = None
    """What its function returned, where there is neither a state nor an exception."""
    state: State[Any] | None = None
    """As Prefect's engine left it, where that ran the item."""
    raised: BaseException | None = None
    """What ended the item and made no state: its future raises it."""
    cpu_s: float = 0.0
    """CPU seconds of its function, over all tries."""
    tries: int = 1
    ran_by: tuple[str, int] = ("", 1)
    """The task run of the batch that ran it, and the number of its try."""

    @property
    def name(self) -> str:
        """The state's, as the report says it."""
        if self.state is not None:
            return str(self.state.name).lower()
        return "completed" if self.raised is None else "crashed"

    @property
    def finished(self) -> bool:
        """Whether it has completed."""
        return self.raised is None and (self.state is None or self.state.is_completed())


class Outcomes:
    """Those of a batch's items, by number; pickled where they go to another process, each by itself."""

    def __init__(self, entries: Mapping[int, Outcome | bytes]) -> None:
        self._entries = dict(entries)

    def all(self) -> dict[int, Outcome]:
        """Every one, unpickled."""
        entries = self._entries.items()
        return {number: loaded(entry) if isinstance(entry, bytes) else entry for number, entry in entries}


class Batch:
    """Items that share a task run.

    Args:
        task: the user's, with the user's function and timeout.
        options: ours.
        items: by its number in the map call, the arguments of each, or the exception that kept them from being resolved.
        unresolved: whether futures may be among the arguments.
        kept: where finished items are kept.
        limit_s: after so many seconds no further item is begun, and the rest handed back.
    """

    def __init__(
        self,
        task: Task[..., Any],
        options: TaoOptions,
        items: Mapping[int, dict[str, Any] | Exception],
        *,
        unresolved: bool,
        kept: Kept,
        limit_s: float | None = None,
    ) -> None:
        self.task, self.items = task, dict(items)
        # The batch's own time is nobody's to be timed out by: its items are, each by itself.
        self.options = replace(options, size=float(len(self.items)), timeout_s=None)
        self.unresolved, self.kept, self.limit_s = unresolved, kept, limit_s
        self.home_pid = os.getpid()
        """The process that made it."""

    def only(self, numbers: Iterable[int]) -> Batch:
        """A batch of some of its items, that runs them all."""
        some = copy(self)
        some.limit_s = None
        some.items = {number: self.items[number] for number in numbers}
        some.options = replace(self.options, size=float(len(some.items)))
        return some


def dumped(value: Any) -> bytes:
    """Pickled, as Prefect pickles what goes to other processes.

    Raises:
        Exception: whatever the value raises when it is pickled.
    """
    if type(value) is dict and all(type(each) in PLAIN_TYPES for each in value.values()):
        return pickle.dumps(value)
    if type(value) is Outcome and value.state is None and value.raised is None and type(value.value) in PLAIN_TYPES:
        return pickle.dumps(value)
    pickled: bytes = cloudpickle.dumps(value)
    return pickled


def loaded(pickled: bytes) -> Outcome:
    """The outcome that was pickled; one that cannot be read says why."""
    try:
        outcome: Outcome = pickle.loads(pickled)  # noqa: S301 - of a process of this flow run
    except Exception as error:  # noqa: BLE001 - the item's future raises it, as Prefect's own would
        return Outcome(raised=error)
    return outcome
