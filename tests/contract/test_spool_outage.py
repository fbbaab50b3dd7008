"""A ledger that is gone for a while, with processes that write, end and are killed meanwhile: nothing acknowledged is lost."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
from postgres_server import running_server

from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import RunRef
from tao_flows.ledger.spool import Spool

WRITER = Path(__file__).with_name("_record_writer.py")
TAO_FLOWS = "import sys; from tao_flows.cli import main; main()"
RUN = RunRef("e", "n", "run", "flow")
RECORDS = 30


@dataclass
class Place:
    """A ledger that can be taken away and given back."""

    url: str
    take_away: Callable[[], None]
    give_back: Callable[[], None]


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    if request.param == "postgres":
        with running_server() as server:
            yield Place(server.fresh_url(), server.halt, server.start)
        return
    directory, aside = tmp_path / "ledger", tmp_path / "aside"

    def take_away() -> None:
        directory.rename(aside)
        directory.write_text("")  # not even root can make a file below a file

    def give_back() -> None:
        directory.unlink()
        aside.rename(directory)

    yield Place(f"sqlite:///{directory}/ledger.db", take_away, give_back)


def writers(place: Place, spool: Path, first: int, count: int) -> list[subprocess.Popen[bytes]]:
    return [
        subprocess.Popen(
            [sys.executable, str(WRITER), place.url, str(spool), str(RECORDS * n), str(RECORDS), "1", "0.05"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for n in range(first, first + count)
    ]  # fmt: skip


@pytest.mark.slow
def test_an_outage_loses_no_acknowledged_record_of_processes_that_end_or_are_killed_in_it(
    place: Place, tmp_path: Path
) -> None:
    spool = Spool(tmp_path / "spool")
    with closing(open_ledger(place.url)) as ledger:
        started = writers(place, spool.directory, 0, 16)
        while not ledger.tasks(RUN):
            time.sleep(0.01)
    place.take_away()
    started += writers(place, spool.directory, 16, 4)
    while not spool.has_records():
        time.sleep(0.01)
    killed = started[::4]
    for process in killed:
        process.kill()
    said = [process.communicate(timeout=120) for process in started]
    assert not [text for _, text in said if b"are lost" in text]
    acknowledged = {int(number) for text, _ in said for number in text.split()}
    assert len(acknowledged) >= RECORDS * (len(started) - len(killed))
    assert spool.has_records()

    place.give_back()
    flush = [sys.executable, "-c", TAO_FLOWS, "spool", "flush", "--dir", str(spool.directory)]
    env = {**os.environ, "TAO_FLOWS_LEDGER": place.url}
    flushing = [subprocess.Popen(flush, env=env, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert 0 in [process.wait(timeout=120) for process in flushing]  # the one that came late has nothing to read
    assert not spool.has_records()
    with closing(open_ledger(place.url)) as ledger:
        held = [int(record.key.instance) for record in ledger.tasks(RUN)]
    assert len(held) == len(set(held))
    assert acknowledged <= set(held)
    assert len(set(held) - acknowledged) <= len(killed)  # the one that each was at


def test_the_next_process_finds_what_earlier_ones_left(place: Place, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    with closing(open_ledger(place.url)) as ledger:
        ledger.runs()
    place.take_away()
    for process in writers(place, spool.directory, 0, 2):
        process.communicate(timeout=120)
    assert spool.has_records()
    place.give_back()
    # Each gives it a fifth of a second at the most, and goes on where the last one came to.
    for number in range(2, 12):
        (process,) = writers(place, spool.directory, number, 1)
        process.communicate(timeout=120)
        if not spool.has_records():
            break
    with closing(open_ledger(place.url)) as ledger:
        assert len(ledger.tasks(RUN)) == (number + 1) * RECORDS
