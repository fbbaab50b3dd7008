"""What has finished in a batch, kept in files beside Prefect's own results for as long as the batch has not ended.

A file is appended to, item by item, so that a process that is killed loses none. A map call has a folder of its own,
named by the flow run, the task and the number of the call; it goes when all of its batches have ended, so that what a
run leaves here are the items of batches that died. Whoever runs the same items of the same call again finds them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

from tao_flows.prefect._compat import local_results

FOLDER: Final = "tao-flows-batches"
"""Below ``PREFECT_LOCAL_STORAGE_PATH``."""
_FORGOTTEN_S: Final = 7 * 86_400
"""What was left by runs that nobody ran again goes after a week."""
_MOST_RUNS: Final = 256


class Kept:
    """The finished items of one map call. Never raises: what cannot be kept is run again.

    Args:
        folder: of the call.
        again: whether another attempt may have left something.
    """

    def __init__(self, folder: Path, *, again: bool) -> None:
        self.folder, self.again = folder, again

    def load(self) -> dict[int, tuple[bytes, bytes]]:
        """By the item's number in the call, the digest of its arguments and its outcome, pickled."""
        found: dict[int, tuple[bytes, bytes]] = {}
        with contextlib.suppress(OSError):
            for file in sorted(self.folder.iterdir()):
                found.update(_entries(file))
        return found

    def begun(self, first: int) -> bool:
        """Whether a batch that begins with ``first`` has been run before, as Dask does after a worker's death."""
        return any(self.folder.glob(f"{first}-*"))

    def writer(self, first: int) -> Writer:
        """Keeps items of the batch that begins with ``first``."""
        return Writer(self.folder / f"{first}-{uuid4().hex}")

    def forget(self) -> None:
        """Drops them all."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()


class Writer:
    """Appends finished items to a file, which is made with the first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: Any = None
        self._works = True

    def add(self, number: int, digest: bytes, outcome: bytes) -> None:
        """Keeps one item. Once this returns, it outlives the process."""
        if not self._works:
            return
        try:
            if self._file is None:
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                # Without a buffer: an entry is one write.
                self._file = os.fdopen(os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab", 0)
            self._file.write(pickle.dumps((number, digest, outcome)))
        except OSError:
            self._works = False

    def close(self) -> None:
        """Gives back the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def _entries(file: Path) -> Iterator[tuple[int, tuple[bytes, bytes]]]:
    with contextlib.suppress(OSError), file.open("rb") as entries:
        while True:
            try:
                number, digest, outcome = pickle.load(entries)  # noqa: S301 - as Prefect's own results beside it
            except Exception:  # noqa: BLE001 - the end, or an entry that was cut off by one
                return
            yield number, (digest, outcome)


def digest_of(pickled: bytes) -> bytes:
    """Tells one item's arguments from another's."""
    return hashlib.blake2b(pickled, digest_size=16).digest()


class _Calls:
    """Counts the map calls of each task in an attempt at a flow run, so that the next attempt finds the same one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, int], Counter[str]] = {}

    def next(self, run_id: str, attempt: int, task_key: str) -> int:
        """The number of this call, from 0."""
        with self._lock:
            while len(self._runs) >= _MOST_RUNS:
                self._runs.pop(next(iter(self._runs)))
            calls = self._runs.setdefault((run_id, attempt), Counter())
            calls[task_key] += 1
            return calls[task_key] - 1


_calls = _Calls()


def kept_of(run_id: str, attempt: int, task_key: str, source: str) -> Kept:
    """The place of the map call that is being made.

    Args:
        run_id: the flow run's.
        attempt: the flow run's count of starts, from 1.
        task_key: the task's.
        source: of its function: what another version of it has left is not taken.
    """
    root = local_results() / FOLDER
    number = _calls.next(run_id, attempt, task_key)
    task = digest_of(f"{task_key}\n{source}".encode()).hex()
    folder = root / run_id / f"{task}-{number}"
    again = folder.is_dir()
    if number == 0:
        _prune(root, run_id)
    return Kept(folder, again=again)


def _prune(root: Path, run_id: str) -> None:
    with contextlib.suppress(OSError):
        for run in root.iterdir():
            if run.name != run_id and time.time() - run.stat().st_mtime > _FORGOTTEN_S:
                shutil.rmtree(run, ignore_errors=True)
