"""The spool on real files: what is appended is read once and in order, whatever is killed, torn, full or strange."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import pytest

from tao_flows.errors import LedgerError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.forward import Drained, LedgerSink, drain
from tao_flows.ledger.spool import REFUSED, Spool, spool_directory, spool_of
from tao_flows.ledger.spool_reader import reading
from tao_flows.ledger.sqlite import SqliteLedger
from tao_flows.ledger.wireformat import Entry, RefusedError, encode
from tao_flows.records import Incident


def note(number: int, size: int = 0) -> Entry:
    return Entry(Incident("NOTE", "x" * size, wall_ns=number))


def lines(*numbers: int, size: int = 0) -> list[bytes]:
    return [encode(note(number, size)) for number in numbers]


class Sink:
    """Takes what it is given and remembers it."""

    batch = 7

    def __init__(self) -> None:
        self.taken: list[int] = []
        self.codes: list[str] = []

    def send(self, entries: Sequence[Entry]) -> Sequence[LedgerError | None]:
        for entry in entries:
            self.taken.append(entry.record.wall_ns)
            self.codes.append(entry.record.code)
        return [None] * len(entries)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def drained(spool: Spool, sink: Sink) -> Drained:
    found = drain(spool.directory, sink)
    assert found.error is None
    return found


def segments(spool: Spool) -> list[Path]:
    return sorted(spool.directory.glob("*.spool"))


def test_what_is_appended_is_sent_in_order_and_then_gone(spool: Spool) -> None:
    sink = Sink()
    spool.append(lines(*range(20)))
    spool.append(lines(20))
    assert spool.has_records()
    assert drained(spool, sink) == Drained(taken=21, done=True)
    assert sink.taken == list(range(21))
    assert not spool.has_records()
    assert segments(spool) == []
    assert drained(spool, sink) == Drained(done=True)


def test_only_its_user_can_read_it(spool: Spool) -> None:
    spool.append(lines(1))
    assert spool.directory.stat().st_mode & 0o777 == 0o700
    assert [path.stat().st_mode & 0o777 for path in segments(spool)] == [0o600]


def test_a_spool_that_is_not_there_holds_nothing(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "none")
    assert not spool.has_records()
    assert spool.status().segments == 0
    assert drain(spool.directory, Sink()) == Drained()
    assert not spool.directory.exists()


def test_a_line_cut_at_any_byte_is_skipped_and_what_follows_is_read(spool: Spool) -> None:
    whole = len(lines(1)[0]) + 10
    for cut in range(1, whole):
        spool.append(lines(1))
        (path,) = segments(spool)
        os.truncate(path, path.stat().st_size - cut)
        spool.append(lines(2))
        sink = Sink()
        found = drained(spool, sink)
        # Cut by its newline alone, the line is whole.
        assert sink.taken == ([1, 2] if cut == 1 else [2])
        assert found.torn == (1 if 1 < cut < whole else 0)


def test_a_torn_end_is_counted_and_goes_away(spool: Spool) -> None:
    spool.append(lines(1, 2))
    spool.close()
    (path,) = segments(spool)
    os.truncate(path, path.stat().st_size - 3)
    sink = Sink()
    assert drained(spool, sink) == Drained(taken=1, torn=1, done=True)
    assert segments(spool) == []


def test_changed_bytes_and_zeros_are_not_taken_for_records(spool: Spool) -> None:
    spool.append(lines(1, 2, 3))
    (path,) = segments(spool)
    content = bytearray(path.read_bytes())
    content[content.index(b'"wall_ns":2') + 10] = ord("7")
    path.write_bytes(bytes(content) + b"\0" * 5_000_000 + b"\n")
    sink = Sink()
    found = drained(spool, sink)
    assert sink.taken == [1, 3]
    assert found.torn >= 2
    assert segments(spool) == []


def test_segments_are_begun_by_size(tmp_path: Path) -> None:
    spool, sink = Spool(tmp_path, segment_bytes=1_000), Sink()
    spool.append(lines(*range(10), size=300))
    spool.append(lines(10, size=5_000))
    assert len(segments(spool)) >= 5
    drained(spool, sink)
    assert sink.taken == list(range(11))


def test_beyond_its_capacity_the_oldest_go_and_the_spool_says_so(tmp_path: Path) -> None:
    spool, sink = Spool(tmp_path, capacity_bytes=10_000, segment_bytes=1_000), Sink()
    dropped = sum(spool.append(lines(number, size=400)) for number in range(100))
    assert spool.status().size_bytes <= 10_000
    assert dropped > 50
    drained(spool, sink)
    kept = [number for number, code in zip(sink.taken, sink.codes, strict=True) if code == "NOTE"]
    assert kept == list(range(100 - len(kept), 100))
    assert "SPOOL_DROPPED" in sink.codes
    # Some of what told of earlier drops was dropped with them, and is counted there.
    assert len(kept) + dropped >= 100


def test_a_full_disk_is_said_and_leaves_no_half_line(tmp_path: Path) -> None:
    program = """
import resource, sys
from pathlib import Path
from tao_flows.errors import LedgerError
from tao_flows.ledger.spool import Spool
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
spool = Spool(Path(sys.argv[1]))
spool.append([b"a" * 600])
try:
    spool.append([b"b" * 600])
except LedgerError as error:
    print(error.code)
"""
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True)
    assert done.stdout == "SPOOL_FAILED\n"
    (path,) = tmp_path.glob("*.spool")
    assert path.read_bytes().count(b"\n") == 1
    assert path.read_bytes().endswith(b"a\n")


def test_a_directory_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(LedgerError) as caught:
        Spool(tmp_path / "file" / "spool").append(lines(1))
    assert caught.value.code == "SPOOL_FAILED"
    assert caught.value.remedy


def test_one_reader_at_a_time(spool: Spool) -> None:
    spool.append(lines(1))
    sink = Sink()
    with reading(spool.directory) as first:
        assert first is not None
        assert drain(spool.directory, sink) == Drained()
    assert sink.taken == []
    assert drained(spool, sink).taken == 1


def test_an_append_while_it_is_read_is_read_too_or_left(spool: Spool) -> None:
    class Appending(Sink):
        def send(self, entries: Sequence[Entry]) -> Sequence[LedgerError | None]:
            if len(self.taken) < 50:
                spool.append(lines(100 + len(self.taken)))
            return super().send(entries)

    sink = Appending()
    spool.append(lines(1))
    while spool.has_records():
        drained(spool, sink)
    assert sink.taken == [1, *range(100, 100 + 50)][: len(sink.taken)]
    assert len(sink.taken) == 51


def test_a_writer_does_not_wait_for_one_that_hangs(spool: Spool) -> None:
    spool.append(lines(1))
    (path,) = segments(spool)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        Spool(spool.directory).append(lines(2))
        assert len(segments(spool)) == 2
        sink = Sink()
        drained(spool, sink)
        # All of it is sent; what is held is removed another time.
        assert sink.taken == [1, 2]
        assert segments(spool) == [path]
    assert drained(spool, sink).taken == 0
    assert segments(spool) == []


def test_a_forked_child_appends_beside_its_parent(spool: Spool) -> None:
    spool.append(lines(1))
    pid = os.fork()
    if pid == 0:
        spool.append(lines(2))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    spool.append(lines(3))
    sink = Sink()
    drained(spool, sink)
    assert sink.taken == [1, 2, 3]


WRITE = """
import os, sys
from pathlib import Path
from tao_flows.ledger.spool import Spool
from tao_flows.ledger.wireformat import Entry, encode
from tao_flows.records import Incident
spool, first = Spool(Path(sys.argv[1]), segment_bytes=20_000), int(sys.argv[2])
for number in range(first, first + int(sys.argv[3])):
    spool.append([encode(Entry(Incident("NOTE", "x" * 200, wall_ns=number)))])
    os.write(1, b"%d\\n" % number)
"""


def test_processes_and_threads_at_once_lose_nothing_while_it_is_drained(spool: Spool) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WRITE, str(spool.directory), str(10_000 * n), "200"], stdout=subprocess.DEVNULL
        )
        for n in range(4)
    ]

    def write(first: int) -> None:
        for number in range(first, first + 200):
            spool.append(lines(number))

    threads = [threading.Thread(target=write, args=(100_000 * n,)) for n in range(1, 4)]
    for thread in threads:
        thread.start()
    sink = Sink()
    while any(process.poll() is None for process in processes) or any(thread.is_alive() for thread in threads):
        drained(spool, sink)
    assert drained(spool, sink).torn == 0
    wanted = [first + number for first in range(0, 40_000, 10_000) for number in range(200)]
    wanted += [first + number for first in range(100_000, 400_000, 100_000) for number in range(200)]
    assert sorted(set(sink.taken)) == sorted(wanted)


def test_what_was_appended_before_a_kill_is_there(spool: Spool) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", WRITE, str(spool.directory), "0", "1000000"], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    for _ in range(100):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    acknowledged = 100 + process.communicate()[0].count(b"\n")
    sink = Sink()
    drained(spool, sink)
    assert sink.taken[:acknowledged] == list(range(acknowledged))
    assert len(sink.taken) <= acknowledged + 1


def test_an_outage_in_the_midst_leaves_the_rest_and_the_order(spool: Spool) -> None:
    class Failing(Sink):
        left = 10

        def send(self, entries: Sequence[Entry]) -> Sequence[LedgerError | None]:
            if not self.left:
                raise LedgerError("LEDGER_BUSY", "busy")
            taken = entries[: self.left]
            self.left -= len(taken)
            return super().send(taken)

    sink = Failing()
    spool.append(lines(*range(20)))
    found = drain(spool.directory, sink)
    assert (found.taken, found.done) == (10, False)
    assert found.error is not None
    assert found.error.code == "LEDGER_BUSY"
    sink.left = 1_000
    drained(spool, sink)
    assert sink.taken == list(range(20))


def test_what_a_killed_reader_took_is_sent_again(spool: Spool) -> None:
    class Killed(Sink):
        def send(self, entries: Sequence[Entry]) -> Sequence[LedgerError | None]:
            if self.taken:
                os._exit(9)
            return super().send(entries)

    spool.append(lines(*range(20)))
    pid = os.fork()
    if pid == 0:
        drain(spool.directory, Killed())
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 9
    sink = Sink()
    drained(spool, sink)
    assert sink.taken == list(range(20))


def test_a_reader_with_little_time_gets_on_every_time(spool: Spool) -> None:
    spool.append(lines(*range(100)))
    sink = Sink()
    for _ in range(100):
        drain(spool.directory, sink, timeout_s=0)
        if not spool.has_records():
            break
    assert sink.taken == list(range(100))


@pytest.mark.parametrize(
    "rubbish", [b"\0" * 100, b"[1]", b'{"x": null}', b"[" * 5_000, b'{"SEGMENT": 7}', b'{"SEGMENT": -1}']
)
def test_a_note_of_how_far_it_came_that_is_wrong_is_not_believed(spool: Spool, rubbish: bytes) -> None:
    spool.append(lines(*range(3)))
    (path,) = segments(spool)
    (spool.directory / ".reader").write_bytes(rubbish.replace(b"SEGMENT", path.name.encode()))
    sink = Sink()
    drained(spool, sink)
    assert sink.taken == [0, 1, 2]


def test_what_is_refused_is_set_aside_and_can_be_tried_again(spool: Spool) -> None:
    class Refusing(Sink):
        def send(self, entries: Sequence[Entry]) -> Sequence[LedgerError | None]:
            return [RefusedError("NO", "not this one") if e.record.wall_ns % 2 else None for e in entries]

    unknown = b'{"v":9,"kind":"task","body":{}}'
    spool.append([*lines(*range(10)), unknown])
    assert drained(spool, Refusing()) == Drained(taken=5, refused=6, done=True)
    assert spool.status().refused_bytes > 0
    assert (spool.directory / REFUSED).read_bytes().count(b"\n") == 6
    assert spool.retry_refused()
    sink = Sink()
    assert drained(spool, sink) == Drained(taken=5, refused=1, done=True)
    assert sink.taken == [1, 3, 5, 7, 9]
    assert (spool.directory / REFUSED).read_bytes().count(b"\n") == 1
    (spool.directory / REFUSED).unlink()
    assert not spool.retry_refused()


def test_links_and_files_that_are_too_large_are_left_alone(spool: Spool, tmp_path: Path) -> None:
    spool.append(lines(1))
    spool.close()
    (own,) = segments(spool)
    secret = tmp_path / "secret"
    secret.write_bytes(own.read_bytes())
    (spool.directory / f"{'1' * 20}-1-a.spool").symlink_to(secret)
    os.link(secret, spool.directory / f"{'2' * 20}-1-a.spool")
    (spool.directory / f"{'3' * 20}-1-a.spool").mkdir()
    os.mkfifo(spool.directory / f"{'4' * 20}-1-a.spool")
    with (spool.directory / f"{'5' * 20}-1-a.spool").open("wb") as large:
        large.truncate(1 << 30)
    (spool.directory / "notes.txt").write_text("mine")
    sink = Sink()
    found = drained(spool, sink)
    assert sink.taken == [1]
    assert found.strange == 5
    assert secret.exists()
    assert (spool.directory / "notes.txt").exists()


def test_another_users_directory_is_not_read(spool: Spool) -> None:
    spool.append(lines(1))
    found = drain(spool.directory, Sink(), owner=os.geteuid() + 1)
    assert found.error is not None
    assert found.error.code == "SPOOL_FOREIGN"


def test_each_ledger_has_a_spool_of_its_own_and_a_password_makes_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    first = spool_directory("postgresql://tao:old@db/tao")
    assert first is not None
    assert first == spool_directory("postgresql://tao:new@db/tao")
    assert first != spool_directory("postgresql://tao:old@other/tao")
    assert "old" not in str(first)
    spool = spool_of("postgresql://tao:old@db/tao")
    assert spool is not None
    assert spool.directory == first
    assert not first.exists()


def test_a_write_only_ledger_fills_a_spool_and_shows_nothing(tmp_path: Path) -> None:
    ledger = open_ledger(f"spool://{tmp_path}/{{uid}}")
    ledger.put_incident(Incident("NOTE", "", wall_ns=5))
    for read in (ledger.runs, ledger.transaction, lambda: ledger.find_runs("latest"), lambda: ledger.fleet(0, "team")):
        with pytest.raises(LedgerError) as caught:
            read()
        assert caught.value.code == "LEDGER_WRITE_ONLY"
        assert caught.value.remedy
    ledger.close()
    with closing(SqliteLedger(tmp_path / "ledger.db")) as target:
        assert drain(tmp_path / str(os.geteuid()), LedgerSink(target)).taken == 1
        assert [incident.wall_ns for incident in target.incidents()] == [5]
