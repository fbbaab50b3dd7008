"""What was last told of a signal, in a file that the processes of a host share: one asks, all know."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tao_flows.errors import InputError, SourceError
from tao_flows.signals.model import Forecast, Issue, Steps, check_order, check_value
from tao_flows.signals.spec import SignalSpec
from tao_flows.signals.times import check_ns

SCHEMA: Final = "tao-flows/signal-cache/1"
_MOST_BYTES: Final = 4 << 20
_TURN_POLL_S: Final = 0.05
_TURN_WAIT_S: Final = 20.0
"""Longer than another process takes to ask with every attempt."""


@dataclass(frozen=True, slots=True)
class Entry:
    """What was told, when it was asked for, and when it may be asked for again. Times are wall clock."""

    asked_wall_ns: int
    next_wall_ns: int
    forecast: Forecast | None = None
    failures: int = 0
    """How often in a row it could not be had."""
    problem: SourceError | None = None


class SharedFile:
    """A file of JSON that is replaced whole, by one process at a time: a reader finds the old or the new one.

    A file that cannot be read, or is no such file, counts as none.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def fingerprint(self) -> tuple[int, int, int] | None:
        """Tells one content of the file from another; None where there is no file."""
        try:
            stat = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino

    def read(self) -> Any:
        """The document in the file, or None."""
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                content = file.read(_MOST_BYTES + 1)
            return json.loads(content) if len(content) <= _MOST_BYTES else None
        except (OSError, ValueError, RecursionError):
            return None

    def write(self, document: object) -> None:
        """Replaces the file. Only for the one that holds ``lock``.

        Raises:
            OSError: it cannot be written.
        """
        new = self.path.with_suffix(".new")
        with suppress(FileNotFoundError):
            new.unlink()  # of one that was killed
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(json.dumps(document, separators=(",", ":"), allow_nan=False).encode())
        os.replace(new, self.path)

    @contextmanager
    def lock(self) -> Iterator[bool]:
        """Whether this process is the one that writes now. It is let go when the process ends, however it ends.

        Raises:
            OSError: there can be no lock.
        """
        import fcntl

        self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                # Not flock, which a child that is forked meanwhile would hold on to.
                fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                yield False
                return
            yield True
        finally:
            os.close(fd)

    @contextmanager
    def turn(self, sleep: Callable[[float], None] = time.sleep) -> Iterator[bool]:
        """Waits for this process's turn to write; False where others take too long over theirs.

        Where there can be no lock there is no waiting either: that nothing can be written shows when it is tried.
        """
        for _ in range(round(_TURN_WAIT_S / _TURN_POLL_S)):
            with ExitStack() as held:
                try:
                    is_ours = held.enter_context(self.lock())
                except OSError:
                    is_ours = True
                if is_ours:
                    yield True
                    return
            sleep(_TURN_POLL_S)
        yield False


def file_name(spec: SignalSpec, *more: str) -> str:
    """What the file of a signal is called: its name for people, and a digest of all that tells it from others."""
    told_by = json.dumps([spec.series, spec.unit, spec.url, spec.csv, *more])
    digest = hashlib.sha256(told_by.encode()).hexdigest()[:16]
    words = re.sub(r"[^A-Za-z0-9]+", "-", f"{spec.name}-{spec.provider}").strip("-")[:60]
    return f"{words}-{digest}.json"


class CacheFile(SharedFile):
    """The file of what was last told of one signal, in a directory."""

    def __init__(self, directory: Path, spec: SignalSpec) -> None:
        super().__init__(directory / file_name(spec))

    def load(self, spec: SignalSpec) -> Entry | None:
        """What the file holds, or None."""
        try:
            return _decode(self.read(), spec)
        except (ValueError, TypeError, KeyError, InputError):
            return None

    def store(self, entry: Entry) -> None:
        """Replaces the file; as ``write``."""
        self.write(_encode(entry))


def _encode(entry: Entry) -> dict[str, Any]:
    forecast, problem = entry.forecast, entry.problem
    return {
        "schema": SCHEMA,
        "asked_wall_ns": entry.asked_wall_ns,
        "next_wall_ns": entry.next_wall_ns,
        "failures": entry.failures,
        "problem": None if problem is None else [problem.code, problem.summary, problem.remedy],
        "forecast": None if forecast is None else {
            "issued_wall_ns": forecast.issue.issued_wall_ns,
            "steps": forecast.issue.steps,
            "end_wall_ns": forecast.end_wall_ns,
            "actuals": forecast.actuals,
        },
    }  # fmt: skip


def _decode(document: dict[str, Any], spec: SignalSpec) -> Entry:
    if document["schema"] != SCHEMA:
        raise ValueError(document["schema"])
    told, problem = document["forecast"], document["problem"]
    forecast = None
    if told is not None:
        issue = Issue(check_ns(told["issued_wall_ns"]), _steps(told["steps"], spec))
        end = told["end_wall_ns"]
        forecast = Forecast(issue, None if end is None else check_ns(end), _steps(told["actuals"], spec))
    return Entry(
        check_ns(document["asked_wall_ns"]),
        check_ns(document["next_wall_ns"]),
        forecast,
        int(document["failures"]),
        None if problem is None else SourceError(*(str(part) for part in problem)),
    )


def _steps(pairs: list[list[Any]], spec: SignalSpec) -> Steps:
    steps = tuple((check_ns(start), check_value(value, spec.signal)) for start, value in pairs)
    check_order(tuple(start for start, _ in steps))
    return steps
