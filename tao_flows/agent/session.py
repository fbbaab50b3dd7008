"""A client's process and its windows, as the agent keeps them."""

from __future__ import annotations

from dataclasses import dataclass, field

from tao_flows.agent.peer import Peer, Process
from tao_flows.agent.stamp import Stamp, Usage
from tao_flows.agent.wire import ClientRole, End, Kind


@dataclass(slots=True)
class Window:
    """An open window."""

    id: str
    token: str
    kind: Kind
    label: str
    session: Session
    base: int
    """The party it is measured on."""
    owned: bool
    """Whether that party is this window's alone, and ends with it."""
    begun_ns: int
    before: Stamp
    used: Usage
    """What the party had used when the window began."""
    engines: Usage
    claimed: Usage
    """What had been claimed from its process when the window began."""
    claim: Usage
    """What this window has claimed itself."""
    serial: int
    """Counts the windows of its process."""
    companions: int
    """Windows of tasks that were open in its process when it began."""
    process: Process | None = None
    """Of a command."""
    tid: int | None = None
    ended_ns: int | None = None
    spent: Usage | None = None
    """What its party used, where that ended before the window did."""
    restored: bool = False
    saved: tuple[object, str] | None = None
    """How it was last written down, and what of it could have changed since."""


@dataclass(slots=True)
class Session:
    """A client's process."""

    peer: Peer
    role: ClientRole
    privileged: bool
    number: int
    """The party of its own threads, without those of its windows."""
    claimed: Usage
    windows: dict[str, Window] = field(default_factory=dict)
    inner: dict[str, Window] = field(default_factory=dict)
    """Those of tasks that run in its own process and have not ended."""
    threads: dict[int, list[int]] = field(default_factory=dict)
    """By thread: parties of the windows over it, innermost last."""
    begun: int = 0
    """How many windows of tasks it has begun."""

    def keep(self, window: Window) -> None:
        """Takes in a window that is open."""
        self.windows[window.id] = window
        if window.kind in {"thread", "steps"}:
            self.inner[window.id] = window


@dataclass(frozen=True, slots=True)
class Waiting:
    """An end that is answered at the next publication."""

    window: Window
    request: End
