"""What a process has not brought to the ledger yet, and how that goes on."""

from __future__ import annotations

import os
import threading
from collections import Counter, deque
from dataclasses import dataclass, field

from tao_flows.ledger.turns import Turns
from tao_flows.ledger.wireformat import Entry


@dataclass(slots=True)
class Waiting:
    """A record, until the ledger holds it."""

    entry: Entry
    is_done: bool = False
    """Written, refused for good, or dropped."""
    is_kept: bool = False
    """In the spool, too."""


@dataclass
class Unwritten:
    """One process's part: a forked child has none of its parent's records."""

    pid: int = field(default_factory=os.getpid)
    turns: Turns = field(default_factory=Turns)
    queue: deque[Waiting] = field(default_factory=deque)
    unkept: deque[Waiting] = field(default_factory=deque)
    """What is not in the spool: of the queue, and what has since been written."""
    queue_lock: threading.Lock = field(default_factory=threading.Lock)
    """Guards both; held for moments."""
    writing: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one thread that writes."""
    spooling: threading.Lock = field(default_factory=threading.Lock)
    """Held by the one thread that copies to the spool."""
    paused_until_ns: int = 0
    spool_paused_until_ns: int = 0
    has_ended: bool = False
    """A task or a run of this process."""
    look_ns: int = 0
    """When the spool is next looked at for what can be written now."""
    failures: Counter[str] = field(default_factory=Counter)
    told: dict[str, tuple[int, int]] = field(default_factory=dict)
    """By code: when it was last told, and the count then."""
