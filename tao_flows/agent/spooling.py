"""Records by way of the agent: tasks leave them in a directory of their user's, and a thread here forwards them.

A task needs no credentials for a ledger, and no more of the agent than a directory: it writes with
``TAO_FLOWS_LEDGER=spool:///var/spool/tao-flows/{uid}`` whether the agent runs or not. Whose records they are, the
directory says: the agent makes it, one a user, for that user alone, when one of its processes first connects. In it
only plain files of that user's own count, without other links, of a bounded size; the rest is left alone and counted.
"""

from __future__ import annotations

import logging
import os
import stat
import threading
from collections import Counter
from pathlib import Path
from typing import Final

from tao_flows.config import state_directory
from tao_flows.errors import ConfigError, TaoError
from tao_flows.ledger.forward import Drained, drain, open_sink
from tao_flows.ledger.spool import CAPACITY_BYTES, make_room

log = logging.getLogger("tao_flows.agent")

SYSTEM_DIRECTORY: Final = Path("/var/spool/tao-flows")
_INTERVAL_S: Final = 1.0
_PAUSE_S: Final = 5.0
"""How long nothing is tried after a ledger has failed."""
_ASIDE: Final = "refused"


def default_directory() -> Path:
    """Where users' directories are: the system's place for root, else below the user's state.

    Raises:
        ConfigError: NO_HOME, there is no home directory.
    """
    if os.geteuid() == 0:
        return SYSTEM_DIRECTORY
    state = state_directory()
    if state is None:
        raise ConfigError("NO_HOME", "there is no home directory to keep a spool in", "give --spool")
    return state / "agent-spool"


class Spooling:
    """Users' directories, and the thread that forwards what is in them.

    Args:
        root: where the directories are made; it must be this user's and not writable by others.
        url: the ledger, or the ingest, that records go to.
        capacity_bytes: what one user's records may take; beyond it the oldest are dropped.
        interval_s: how often the directories are looked at.

    Raises:
        ConfigError: SPOOL_DIRECTORY, it cannot be used; LEDGER_URL.
    """

    def __init__(
        self, root: Path, url: str, *, capacity_bytes: int = CAPACITY_BYTES, interval_s: float = _INTERVAL_S
    ) -> None:
        self.root = root.absolute()
        self.forwarded = 0
        """Records that the ledger has taken since the agent started."""
        self.incidents: Counter[str] = Counter()
        """How often each code came up. Never changed in place: any thread may read it."""
        self._sink = open_sink(url)
        self._capacity_bytes = capacity_bytes
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._strange: dict[int, int] = {}
        self._made: set[int] = set()
        _prepare(self.root)
        self._thread = threading.Thread(target=self._run, name="tao-flows-spooling", daemon=True)
        self._thread.start()

    def welcome(self, uid: int) -> None:
        """Makes the directory of a user, if it is not there. Never raises."""
        if uid in self._made or (uid != os.geteuid() and os.geteuid() != 0):
            return
        path = self.root / str(uid)
        try:
            path.mkdir(mode=0o700, exist_ok=True)
            if path.lstat().st_uid != uid:
                os.chown(path, uid, -1, follow_symlinks=False)
            self._made.add(uid)
        except OSError:
            self._note("SPOOL_DIRECTORY")

    def close(self) -> None:
        """Ends the thread; what is not forwarded stays for the next agent."""
        self._stopped.set()
        self._thread.join(timeout=10)

    def _run(self) -> None:
        wait_s = self._interval_s
        while not self._stopped.wait(wait_s):
            try:
                wait_s = self._interval_s if self._forward_all() else _PAUSE_S
            except Exception:  # the agent has other things to do, and goes on with them
                log.exception("forwarding failed")
                self._note("INTERNAL_FORWARDING")
                wait_s = _PAUSE_S

    def _forward_all(self) -> bool:
        """Whether the ledger took what there was."""
        for path in sorted(self.root.iterdir()):
            if not path.name.isdecimal() or self._stopped.is_set():
                continue
            uid = int(path.name)
            drained = drain(
                path, self._sink, owner=uid, aside=self.root / _ASIDE / str(uid), stopped=self._stopped.is_set
            )
            self._count(uid, drained)
            self._note("SPOOL_DROPPED", make_room(path, self._capacity_bytes))
            if drained.error is not None and not drained.error.code.startswith("SPOOL"):
                return False
        return True

    def _count(self, uid: int, drained: Drained) -> None:
        self.forwarded += drained.taken
        self._note("SPOOL_REFUSED", drained.refused)
        self._note("SPOOL_TORN", drained.torn)
        # They are left where they are, and seen every time: only more of them are news.
        self._note("SPOOL_STRANGE", max(0, drained.strange - self._strange.get(uid, 0)))
        if drained.done:
            self._strange[uid] = drained.strange
        if isinstance(drained.error, TaoError):
            if drained.error.code not in self.incidents:
                log.warning("records of user %d are not forwarded: %s", uid, drained.error)
            self._note(drained.error.code)

    def _note(self, code: str, count: int = 1) -> None:
        if count:
            self.incidents = self.incidents + Counter({code: count})


def _prepare(root: Path) -> None:
    try:
        root.mkdir(mode=0o711, parents=True, exist_ok=True)
        found = root.lstat()
    except OSError as error:
        raise ConfigError("SPOOL_DIRECTORY", f"{root}: {error.strerror}", "give --spool another directory") from None
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        summary = f"{root} is no directory that this user alone may write to"
        raise ConfigError("SPOOL_DIRECTORY", summary, "give --spool a directory of the agent's own")
    # Others go through it to their own directory, and see no names in it.
    root.chmod(0o711)
