"""A ledger that is looked up on first use: while it cannot be found, nothing is lost and nothing fails."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tao_flows.config import load_config
from tao_flows.errors import ConfigError, LedgerError
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.late import LateLedger
from tao_flows.ledger.safe import SafeLedger
from tao_flows.ledger.spool import Spool, spool_of
from tao_flows.records import RunRecord, Segment
from tao_flows.runtime import named_ledger
from tao_flows.testing import FakeClock

RUN = RunRecord("airflow", "default", "nightly", "run-1", "running", 900, Segment("node-1", "boot", 4242, 99))


class Found:
    """What is found, once there is something."""

    def __init__(self, url: str) -> None:
        self.url, self.there, self.asked = url, False, 0

    def __call__(self) -> Ledger:
        self.asked += 1
        if not self.there:
            raise ConfigError("CONNECTION_UNKNOWN", "the connection ledger cannot be had", "create it")
        return open_ledger(self.url)


@pytest.fixture
def found(tmp_path: Path) -> Found:
    return Found(f"sqlite:///{tmp_path}/ledger.db")


def safe(found: Callable[[], Ledger], spool: Spool, clock: FakeClock) -> SafeLedger:
    late: Ledger = LateLedger("conn:ledger", found)  # type: ignore[assignment]
    return SafeLedger(late, clock=clock, spool=spool)


def test_nothing_is_looked_up_before_it_is_used(found: Found, tmp_path: Path) -> None:
    ledger = safe(found, Spool(tmp_path / "spool"), FakeClock())
    ledger.close()
    assert found.asked == 0


def test_what_cannot_be_found_is_an_error_of_a_ledger_with_the_finders_code(found: Found) -> None:
    with pytest.raises(LedgerError) as caught:
        LateLedger("conn:ledger", found).runs()
    assert (caught.value.code, caught.value.remedy) == ("CONNECTION_UNKNOWN", "create it")


def test_records_wait_in_the_spool_and_are_written_once_it_is_found(found: Found, tmp_path: Path) -> None:
    clock, spool = FakeClock(monotonic_ns=10**12), Spool(tmp_path / "spool")
    ledger = safe(found, spool, clock)
    ledger.put_run(RUN)
    assert spool.has_records()
    assert ledger.failures == {"CONNECTION_UNKNOWN": 1}
    found.there = True
    # Another process of this host, later: it brings along what the first has left.
    clock.advance(60)
    another = safe(found, spool, clock)
    another.put_run(RunRecord("airflow", "default", "nightly", "run-2", "running", 950, RUN.segment))
    assert {run.run_id for run in open_ledger(found.url).runs()} == {"run-1", "run-2"}
    assert not spool.has_records()
    assert found.asked == 2


def test_the_setting_is_kept_as_it_is_and_holds_no_path(tmp_path: Path) -> None:
    config = load_config(env={"HOME": str(tmp_path), "TAO_FLOWS_LEDGER": "conn:tao_ledger"}, cwd=tmp_path).config
    assert config.ledger == "conn:tao_ledger"


def test_a_process_without_an_engine_says_that_it_has_none() -> None:
    with pytest.raises(ConfigError) as caught:
        named_ledger("conn:tao_ledger")
    assert caught.value.code == "LEDGER_CONNECTION"
    assert "TAO_FLOWS_LEDGER" in caught.value.remedy


def test_the_spool_is_named_by_the_setting_so_that_it_is_found_before_the_ledger_is() -> None:
    one, other = spool_of("conn:tao_ledger"), spool_of("conn:another")
    assert one is not None
    assert other is not None
    assert one.directory != other.directory
