"""Where a signal's values come from: a figure in the settings, a file, or a provider that is asked now and then."""

from __future__ import annotations

import os
import random
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Protocol

from tao_flows.clock import Clock
from tao_flows.errors import InputError, LedgerError, SourceError
from tao_flows.lazily import lazily
from tao_flows.signals.cache import CacheFile, Entry
from tao_flows.signals.csvfile import Series, read_series
from tao_flows.signals.http import LONGEST_RETRY_AFTER_S, Client, LaterError
from tao_flows.signals.keys import KeySource, find_credentials
from tao_flows.signals.model import Forecast, Issue, Steps, typical_length_ns
from tao_flows.signals.providers import CLOCK_SKEW_NS, fetch
from tao_flows.signals.spec import CSV, PROVIDERS, STATIC, SignalSpec
from tao_flows.signals.store import ForecastStore
from tao_flows.units import NS_PER_S

LARGEST_CSV_BYTES: Final = 8 << 20
"""Half a second's reading. A longer history belongs in ``simulate``, not in what decisions wait for."""
_FIRST_PAUSE_S: Final = 30.0
"""After a failure; doubled by each further one, up to the signal's refresh."""


@dataclass(frozen=True)
class Known:
    """What is known of a signal."""

    forecast: Forecast | None = None
    issued_wall_ns: int | None = None
    """None: it has no age."""
    asked_wall_ns: int | None = None
    problems: tuple[SourceError, ...] = ()

    @lazily
    def rows(self) -> tuple[tuple[int, float | None], ...]:
        """Every step, past ones too."""
        return () if self.forecast is None else self.forecast.steps_from(0)


def _name(spec: SignalSpec) -> str:
    return f"{spec.series} for {spec.zone}"


class Feed(Protocol):
    """One signal of one zone."""

    spec: SignalSpec
    name: str
    """Tells it from every other."""

    @property
    def forecasts(self) -> bool:
        """Whether it has forecasts, which may be wrong; else it tells what is fixed."""
        ...

    def look(self, now_wall_ns: int) -> Known:
        """What is known now, at the cost of a ``stat``, and of reading a file that has changed."""
        ...

    def due(self, now_wall_ns: int) -> bool:
        """Whether it is time to ask."""
        ...

    def refresh(self, *, force: bool = False) -> None:
        """Asks, which may take seconds. Never raises: what goes wrong is among the problems."""
        ...

    def history(self, since_wall_ns: int) -> tuple[tuple[Issue, ...], Steps]:
        """Forecasts as they were issued since, and what came true.

        Raises:
            LedgerError: the ledger cannot be read.
        """
        ...


class StaticFeed:
    """A figure in the settings."""

    def __init__(self, spec: SignalSpec) -> None:
        self.spec, self.name = spec, _name(spec)
        self._known = Known(Forecast(Issue(0, ((0, (spec.value or 0.0) * spec.factor),))))

    @property
    def forecasts(self) -> bool:
        return False

    def look(self, now_wall_ns: int) -> Known:  # noqa: ARG002
        return self._known

    def due(self, now_wall_ns: int) -> bool:  # noqa: ARG002
        return False

    def refresh(self, *, force: bool = False) -> None:
        pass

    def history(self, since_wall_ns: int) -> tuple[tuple[Issue, ...], Steps]:  # noqa: ARG002
        return (), ()


class CsvFeed:
    """A file, read again whenever it changes.

    With forecasts in it, the latest issue counts. Without, its rows are taken as published when the file was written.
    """

    def __init__(self, spec: SignalSpec) -> None:
        self.spec, self.name = spec, _name(spec)
        self._seen: object = None
        self._series = Series((), ())
        self._written_ns = 0
        self._problem: SourceError | None = None
        self._built: tuple[object, Known] | None = None
        self._lock = threading.Lock()

    @property
    def forecasts(self) -> bool:
        return bool(self._series.issues)

    def look(self, now_wall_ns: int) -> Known:
        with self._lock:  # of many threads that want it first, one reads the file
            self._read_if_changed()
            issues = self._series.issues
            index = bisect_right(issues, now_wall_ns, key=lambda issue: issue.issued_wall_ns) - 1
            which = (self._seen, index)
            if self._built is None or self._built[0] != which:
                self._built = (which, self._build(index, now_wall_ns))
            return self._built[1]

    def due(self, now_wall_ns: int) -> bool:  # noqa: ARG002
        return False

    def refresh(self, *, force: bool = False) -> None:
        pass

    def history(self, since_wall_ns: int) -> tuple[tuple[Issue, ...], Steps]:
        return (
            tuple(issue for issue in self._series.issues if issue.issued_wall_ns >= since_wall_ns),
            tuple(step for step in self._series.actuals if step[0] >= since_wall_ns),
        )

    def _build(self, index: int, now_wall_ns: int) -> Known:
        actuals, issues = self._series.actuals, self._series.issues
        if self._problem is not None or (not actuals and index < 0):
            return Known(problems=() if self._problem is None else (self._problem,))
        # A file may be dated later than now: copied from elsewhere, or by a clock that was wrong.
        published = Issue(min(self._written_ns, now_wall_ns), actuals)
        issue, past = (issues[index], actuals) if index >= 0 else (published, ())
        last_ns = typical_length_ns(tuple(start for start, _ in issue.steps))
        end = None if last_ns is None else issue.steps[-1][0] + last_ns
        return Known(Forecast(issue, end, past), issue.issued_wall_ns)

    def _read_if_changed(self) -> None:
        path = Path(self.spec.csv)
        try:
            stat = os.stat(path)
            seen: object = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        except OSError as error:
            stat, seen = None, (error.errno,)
        if seen == self._seen:
            return
        self._seen, self._series, self._problem = seen, Series((), ()), None
        try:
            self._series = self._read(path, 0 if stat is None else stat.st_size)
            self._written_ns = 0 if stat is None else stat.st_mtime_ns
        except InputError as error:
            self._problem = SourceError(error.code, f"{self.spec.name}: {error.summary}", error.remedy)

    def _read(self, path: Path, size: int) -> Series:
        if size > LARGEST_CSV_BYTES:
            remedy = "keep in it what decisions need: the latest forecasts, and a month to learn from"
            raise InputError("BAD_SIGNAL_FILE", f"{path}: more than {LARGEST_CSV_BYTES >> 20} MiB", remedy)
        series = read_series(path, signal=self.spec.signal, column=self.spec.column, factor=self.spec.factor)
        if self.spec.area not in series:
            summary = f"{path}: no row of zone {self.spec.area!r}"
            raise InputError("BAD_SIGNAL_FILE", summary, f"zones in it: {', '.join(list(series)[:10]) or 'none'}")
        return series[self.spec.area]


class HttpFeed:
    """A provider, asked by one process of the host at a time; what it told lies in a file they share.

    Args:
        spec: what is asked for.
        cache: the file; None: each process asks for itself.
        store: where forecasts are kept as issued; None: nowhere.
        keys: where keys are kept besides variables and files.
    """

    def __init__(
        self,
        spec: SignalSpec,
        cache: CacheFile | None,
        store: ForecastStore | None,
        clock: Clock,
        keys: KeySource | None = None,
        env: Mapping[str, str] = os.environ,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.spec, self.name = spec, _name(spec)
        self._cache, self._store, self._clock, self._keys, self._env = cache, store, clock, keys, env
        self._sleep = sleep
        self._client = Client(spec.name, spec.timeout_s, sleep=sleep)
        self._fingerprint: tuple[int, int, int] | None = None
        self._entry: Entry | None = None
        self._known = Known()
        self._own_problems: tuple[SourceError, ...] = ()
        """Of this process alone: the cache or the ledger cannot be written."""

    @property
    def forecasts(self) -> bool:
        return PROVIDERS[self.spec.provider].forecasts

    def look(self, now_wall_ns: int) -> Known:  # noqa: ARG002
        if self._cache is not None:
            seen = self._cache.fingerprint()
            if seen is not None and seen != self._fingerprint:
                entry = self._cache.load(self.spec)
                self._fingerprint = seen
                if entry is not None:
                    self._adopt(entry)
        return self._known

    def due(self, now_wall_ns: int) -> bool:
        return self._is_due(self._entry, now_wall_ns)

    def refresh(self, *, force: bool = False) -> None:
        begun_ns = self._clock.wall_ns()
        try:
            self._own_problems = ()
            with nullcontext(True) if self._cache is None else self._cache.turn(self._sleep) as is_ours:
                if is_ours:
                    self._ask_if_due(begun_ns, force=force)
        except Exception as error:  # noqa: BLE001 - a signal that fails must not fail the work
            problem = self._client.error("SIGNAL_FAILED", f"{type(error).__name__}: {error}", "report this, please")
            self._adopt(self._after_failure(self._entry, problem))

    def history(self, since_wall_ns: int) -> tuple[tuple[Issue, ...], Steps]:
        return ((), ()) if self._store is None else self._store.pairs(self.spec.series, self.spec.zone, since_wall_ns)

    def _is_due(self, entry: Entry | None, now_wall_ns: int) -> bool:
        if entry is None or now_wall_ns >= entry.next_wall_ns:
            return True
        # The clock was set back, or the file is not ours: neither may keep it from being asked for ever.
        longest_s = max(2 * self.spec.refresh_s, LONGEST_RETRY_AFTER_S)
        return now_wall_ns < entry.asked_wall_ns - CLOCK_SKEW_NS or (
            entry.next_wall_ns - now_wall_ns > longest_s * NS_PER_S
        )

    def _ask_if_due(self, begun_ns: int, *, force: bool) -> None:
        last = self._cache.load(self.spec) if self._cache is not None else self._entry
        now_ns = self._clock.wall_ns()
        if last is not None and (last.asked_wall_ns >= begun_ns if force else not self._is_due(last, now_ns)):
            self._adopt(last)  # another process was first
            return
        try:
            credentials = find_credentials(self.spec, self._keys, self._env)
            answer = fetch(self.spec, self._client, credentials, now_ns)
        except SourceError as error:
            self._keep(self._after_failure(last, error))
            return
        # Hosts that were started together need not go on asking together.
        pause_s = self.spec.refresh_s * random.uniform(0.9, 1.1)  # noqa: S311
        self._keep(Entry(now_ns, now_ns + round(pause_s * NS_PER_S), answer.forecast, 0, answer.problem))
        self._remember(answer.forecast)

    def _after_failure(self, last: Entry | None, error: SourceError) -> Entry:
        now_ns, failures = self._clock.wall_ns(), (last.failures if last is not None else 0) + 1
        pause_s = min(self.spec.refresh_s, _FIRST_PAUSE_S * 2.0 ** min(failures - 1, 20)) * random.uniform(0.5, 1.0)  # noqa: S311
        if isinstance(error, LaterError):
            pause_s = max(pause_s, error.wait_s)
        told = last.forecast if last is not None else None
        return Entry(now_ns, now_ns + round(pause_s * NS_PER_S), told, failures, error)

    def _keep(self, entry: Entry) -> None:
        self._adopt(entry)
        if self._cache is not None:
            try:
                self._cache.store(entry)
            except OSError as error:
                remedy = "make the state directory writable; until then each process asks for itself"
                self._note(self._client.error("SIGNAL_CACHE", f"{self._cache.path}: {error.strerror}", remedy))

    def _remember(self, forecast: Forecast) -> None:
        if self._store is not None:
            try:
                self._store.put(self.spec.series, self.spec.zone, forecast)
            except LedgerError as error:
                self._note(self._client.error(error.code, error.summary, error.remedy))

    def _note(self, problem: SourceError) -> None:
        self._own_problems += (problem,)
        self._known = replace(self._known, problems=(*self._known.problems, problem))

    def _adopt(self, entry: Entry) -> None:
        self._entry = entry
        issued = None if entry.forecast is None else entry.forecast.issue.issued_wall_ns
        told = () if entry.problem is None else (entry.problem,)
        self._known = Known(entry.forecast, issued, entry.asked_wall_ns, (*told, *self._own_problems))


def build_feed(
    spec: SignalSpec,
    store: ForecastStore | None,
    cache_dir: Path | None,
    clock: Clock,
    keys: KeySource | None,
    env: Mapping[str, str],
) -> Feed:
    """The feed that a signal's settings describe."""
    if spec.provider == STATIC:
        return StaticFeed(spec)
    if spec.provider == CSV:
        return CsvFeed(spec)
    cache = None if cache_dir is None else CacheFile(cache_dir, spec)
    return HttpFeed(spec, cache, store, clock, keys, env)
