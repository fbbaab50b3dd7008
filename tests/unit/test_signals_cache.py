"""What the processes of a host share of a signal: asked for once, whole or not there, and nobody else's to read."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from signal_server import KEY, Fault, S, SignalServer, ns, serving

from tao_flows.errors import SourceError
from tao_flows.signals.cache import SCHEMA, CacheFile, Entry
from tao_flows.signals.feeds import HttpFeed
from tao_flows.signals.model import Forecast, Issue
from tao_flows.signals.spec import SignalSpec, parse_signals
from tao_flows.testing import FakeClock

NOW = ns("2026-03-01T14:07:00Z")
FORECAST = Forecast(Issue(NOW, ((NOW, 1.5), (NOW + S, 2.5))), NOW + 2 * S, ((NOW - S, 1.0),))
ENTRY = Entry(NOW, NOW + 900 * S, FORECAST, 2, SourceError("CODE", "summary", "remedy"))


def spec_of(url: str, **more: object) -> SignalSpec:
    entry = {"provider": "electricitymaps", "key_env": "EM_KEY", "url": url, **more}
    (spec,) = parse_signals({"carbon": {"DE": entry}}, Path("/")).values()
    return spec


def same(one: Entry | None, other: Entry) -> bool:
    return (
        one is not None
        and (one.asked_wall_ns, one.next_wall_ns, one.forecast, one.failures)
        == (other.asked_wall_ns, other.next_wall_ns, other.forecast, other.failures)
        and str(one.problem) == str(other.problem)
    )


@pytest.fixture
def spec() -> SignalSpec:
    return spec_of("http://127.0.0.1:9")


@pytest.fixture
def file(tmp_path: Path, spec: SignalSpec) -> CacheFile:
    file = CacheFile(tmp_path / "signals", spec)
    with file.lock() as is_ours:
        assert is_ours
        file.store(ENTRY)
    return file


@pytest.fixture
def server() -> Iterator[SignalServer]:
    with serving(NOW) as server:
        yield server


def feed(server: SignalServer, directory: Path | None, clock: FakeClock, **more: object) -> HttpFeed:
    spec = spec_of(server.url, **more)
    cache = None if directory is None else CacheFile(directory, spec)
    return HttpFeed(spec, cache, None, clock, None, {"EM_KEY": KEY}, sleep=lambda _: None)


class TestFile:
    def test_gives_back_what_was_stored(self, file: CacheFile, spec: SignalSpec) -> None:
        assert same(file.load(spec), ENTRY)

    def test_is_its_owners_alone(self, file: CacheFile) -> None:
        assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700

    @pytest.mark.parametrize(
        "content",
        [
            b"", b"{", b"[]", b"null", b"\xff", b"[" * 10_000, b'{"schema":"other/1"}',
            json.dumps({"schema": SCHEMA}).encode(),
        ],
    )  # fmt: skip
    def test_a_content_that_is_none_counts_as_no_file_and_is_replaced(
        self, file: CacheFile, spec: SignalSpec, content: bytes
    ) -> None:
        file.path.write_bytes(content)
        assert file.load(spec) is None
        file.store(ENTRY)
        assert same(file.load(spec), ENTRY)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("steps", [[NOW, -5.0]]),
            ("steps", [[NOW, 1.0], [NOW, 2.0]]),
            ("steps", [["now", 1.0]]),
            ("steps", [[2**70, 1.0]]),
            ("steps", [[NOW, None]]),
            ("issued_wall_ns", "now"),
            ("end_wall_ns", 1.5),
            ("actuals", 7),
        ],
    )
    def test_values_that_cannot_be_are_not_used(
        self, file: CacheFile, spec: SignalSpec, field: str, value: object
    ) -> None:
        document = json.loads(file.path.read_bytes())
        document["forecast"][field] = value
        file.path.write_text(json.dumps(document))
        assert file.load(spec) is None

    def test_a_link_is_not_followed(self, file: CacheFile, spec: SignalSpec, tmp_path: Path) -> None:
        elsewhere = tmp_path / "elsewhere"
        file.path.rename(elsewhere)
        file.path.symlink_to(elsewhere)
        assert file.load(spec) is None

    def test_a_file_beyond_all_measure_is_not_read(self, file: CacheFile, spec: SignalSpec) -> None:
        with file.path.open("ab") as grown:
            grown.write(b" " * (5 << 20))
        assert file.load(spec) is None

    def test_another_provider_url_or_unit_has_another_file(self, tmp_path: Path) -> None:
        urls = ("http://127.0.0.1:9", "http://127.0.0.1:10")
        assert len({CacheFile(tmp_path, spec_of(url)).path for url in urls}) == 2

    def test_the_file_holds_no_key(self, server: SignalServer, tmp_path: Path) -> None:
        server.faults.append(Fault(status=302, headers={"Location": f"http://x/{KEY}"}))
        for force in (False, True):
            feed(server, tmp_path, FakeClock(wall_ns=NOW)).refresh(force=force)
            (path,) = tmp_path.glob("*.json")
            assert KEY not in path.read_text()

    def test_one_process_at_a_time_may_write_and_a_killed_one_lets_go(self, tmp_path: Path, spec: SignalSpec) -> None:
        holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE)
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"held\n"
            with CacheFile(tmp_path, spec).lock() as is_ours:
                assert not is_ours
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()
            with CacheFile(tmp_path, spec).lock() as is_ours:
                assert is_ours
        finally:
            holder.kill()
            holder.communicate()

    def test_killing_a_writer_at_any_moment_leaves_a_whole_file(self, tmp_path: Path, spec: SignalSpec) -> None:
        file = CacheFile(tmp_path, spec)
        seen = 0
        for delay_s in (0.0, 0.003, 0.01, 0.02, 0.05):
            writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE)
            try:
                assert writer.stdout is not None
                assert writer.stdout.readline() == b"writing\n"
                time.sleep(delay_s)
            finally:
                writer.kill()
                writer.communicate()
            if file.fingerprint() is not None:
                entry = file.load(spec)
                assert entry is not None
                assert entry.forecast is not None
                assert len(entry.forecast.issue.steps) == 5_000
                seen += 1
        assert seen
        with file.lock() as is_ours:
            assert is_ours
            file.store(ENTRY)
        assert same(file.load(spec), ENTRY)
        assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".lock"}


_COMMON = """
import sys, time
from pathlib import Path
from tao_flows.signals.cache import CacheFile, Entry
from tao_flows.signals.model import Forecast, Issue
from tao_flows.signals.spec import parse_signals
entry = {"provider": "electricitymaps", "key_env": "EM_KEY", "url": "http://127.0.0.1:9"}
(spec,) = parse_signals({"carbon": {"DE": entry}}, Path("/")).values()
file = CacheFile(Path(sys.argv[1]), spec)
"""
HOLDER = _COMMON + "with file.lock() as ours:\n print('held' if ours else 'taken', flush=True)\n time.sleep(60)"
WRITER = (
    _COMMON
    + """
steps = tuple((index * 10**9, float(index)) for index in range(5000))
with file.lock() as ours:
    assert ours
    file.store(Entry(1, 2, Forecast(Issue(0, steps))))
    print('writing', flush=True)
    while True:
        file.store(Entry(1, 2, Forecast(Issue(0, steps))))
"""
)


class TestFeed:
    def test_what_one_process_was_told_all_know(self, server: SignalServer, tmp_path: Path) -> None:
        clock = FakeClock(wall_ns=NOW)
        first, second = feed(server, tmp_path, clock), feed(server, tmp_path, clock)
        assert first.due(NOW)
        first.refresh()
        asked = len(server.asked)
        assert second.look(NOW).forecast == first.look(NOW).forecast
        assert not second.due(NOW)
        second.refresh()
        assert len(server.asked) == asked

    def test_two_processes_that_start_together_ask_once(self, server: SignalServer, tmp_path: Path) -> None:
        server.always = Fault(before_s=0.1)
        env = {**os.environ, "EM_KEY": KEY}
        command = [sys.executable, "-c", ASKER, str(tmp_path), server.url, str(NOW)]
        askers = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE) for _ in range(4)]
        told = [asker.communicate(timeout=60)[0] for asker in askers]
        assert told == [b"300.0\n"] * 4
        assert server.paths() == ["/v3/carbon-intensity/latest", "/v3/carbon-intensity/forecast"]

    def test_it_is_asked_again_when_its_time_has_come(self, server: SignalServer, tmp_path: Path) -> None:
        clock = FakeClock(wall_ns=NOW)
        asker = feed(server, tmp_path, clock, refresh="10m")
        asker.refresh()
        assert not asker.due(NOW + 539 * S)
        assert asker.due(NOW + 661 * S)

    def test_a_failure_keeps_the_last_forecast_and_is_told(self, server: SignalServer, tmp_path: Path) -> None:
        clock = FakeClock(wall_ns=NOW)
        asker = feed(server, tmp_path, clock)
        asker.refresh()
        before = asker.look(NOW).forecast
        clock.advance(3600)
        server.always = Fault(status=500)
        asker.refresh()
        known = asker.look(clock.wall_ns())
        assert known.forecast == before
        assert [problem.code for problem in known.problems] == ["SIGNAL_HTTP"]
        server.always = None
        clock.advance(3600)
        asker.refresh()
        assert asker.look(clock.wall_ns()).problems == ()

    def test_each_further_failure_is_followed_by_a_longer_pause(self, server: SignalServer, tmp_path: Path) -> None:
        clock = FakeClock(wall_ns=NOW)
        server.always = Fault(status=500)
        asker = feed(server, tmp_path, clock, refresh="1h")
        pauses = []
        for _ in range(10):
            asker.refresh()
            begun = clock.wall_ns()
            while not asker.due(clock.wall_ns()):
                clock.advance(5)
            pauses.append((clock.wall_ns() - begun) / S)
        assert 15 <= pauses[0] <= 35
        assert 120 <= pauses[3] <= 245
        assert 1800 <= pauses[9] <= 3605

    def test_a_server_that_asks_for_patience_gets_it(self, server: SignalServer, tmp_path: Path) -> None:
        clock = FakeClock(wall_ns=NOW)
        server.always = Fault(status=429, headers={"Retry-After": "7200"})
        asker = feed(server, tmp_path, clock)
        asker.refresh()
        assert not asker.due(NOW + 7199 * S)
        assert asker.due(NOW + 7200 * S)

    def test_a_clock_that_was_set_back_does_not_silence_it(self, server: SignalServer, tmp_path: Path) -> None:
        asker = feed(server, tmp_path, FakeClock(wall_ns=NOW))
        asker.refresh()
        assert asker.due(NOW - 7 * 86_400 * S)

    def test_a_forced_refresh_asks_though_it_is_not_due(self, server: SignalServer, tmp_path: Path) -> None:
        clock = FakeClock(wall_ns=NOW)
        asker = feed(server, tmp_path, clock)
        asker.refresh()
        asked = len(server.asked)
        clock.advance(1)
        asker.refresh(force=True)
        assert len(server.asked) == 2 * asked

    def test_a_missing_key_is_a_problem_and_no_request(self, server: SignalServer, tmp_path: Path) -> None:
        asker = HttpFeed(spec_of(server.url), CacheFile(tmp_path, spec_of(server.url)), None, FakeClock(), None, {})
        asker.refresh()
        assert [problem.code for problem in asker.look(NOW).problems] == ["SIGNAL_KEY"]
        assert not server.asked

    def test_without_a_directory_each_process_asks_for_itself(self, server: SignalServer) -> None:
        asker = feed(server, None, FakeClock(wall_ns=NOW))
        asker.refresh()
        assert asker.look(NOW).forecast is not None

    def test_a_directory_that_cannot_be_made_is_told_and_does_no_harm(
        self, server: SignalServer, tmp_path: Path
    ) -> None:
        (tmp_path / "file").write_text("in the way")
        asker = feed(server, tmp_path / "file" / "signals", FakeClock(wall_ns=NOW))
        asker.refresh()
        known = asker.look(NOW)
        assert known.forecast is not None
        assert [problem.code for problem in known.problems] == ["SIGNAL_CACHE"]

    def test_a_corrupted_file_is_asked_for_anew(self, server: SignalServer, tmp_path: Path) -> None:
        clock = FakeClock(wall_ns=NOW)
        feed(server, tmp_path, clock).refresh()
        (path,) = tmp_path.glob("*.json")
        path.write_bytes(path.read_bytes()[:100])
        other = feed(server, tmp_path, clock)
        assert other.look(NOW).forecast is None
        other.refresh()
        assert other.look(NOW).forecast is not None

    def test_what_goes_wrong_inside_is_told_and_not_raised(self, server: SignalServer, tmp_path: Path) -> None:
        def broken(_: object) -> None:
            raise RuntimeError("engine gone")

        spec = spec_of(server.url)
        asker = HttpFeed(spec, CacheFile(tmp_path, spec), None, FakeClock(), broken, {})
        asker.refresh()
        (problem,) = asker.look(NOW).problems
        assert problem.code == "SIGNAL_FAILED"
        assert "engine gone" in problem.summary

    def test_threads_of_one_process_may_look_while_one_asks(self, server: SignalServer, tmp_path: Path) -> None:
        clock = FakeClock(wall_ns=NOW)
        asker = feed(server, tmp_path, clock)
        looking = threading.Event()
        wrong: list[object] = []

        def look() -> None:
            while not looking.is_set():
                known = asker.look(NOW)
                if known.forecast is not None and known.forecast.issue.steps[0][1] != 300.0:
                    wrong.append(known)

        threads = [threading.Thread(target=look) for _ in range(3)]
        for thread in threads:
            thread.start()
        for _ in range(20):
            clock.advance(1)
            asker.refresh(force=True)
        looking.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert asker.look(NOW).forecast is not None


ASKER = """
import sys
from pathlib import Path
from tao_flows.signals.cache import CacheFile
from tao_flows.signals.feeds import HttpFeed
from tao_flows.signals.spec import parse_signals
from tao_flows.testing import FakeClock
entry = {"provider": "electricitymaps", "key_env": "EM_KEY", "url": sys.argv[2]}
(spec,) = parse_signals({"carbon": {"DE": entry}}, Path("/")).values()
feed = HttpFeed(spec, CacheFile(Path(sys.argv[1]), spec), None, FakeClock(wall_ns=int(sys.argv[3])))
feed.refresh()
print(feed.look(0).forecast.issue.steps[0][1])
"""
