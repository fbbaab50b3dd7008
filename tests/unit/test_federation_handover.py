"""A run on its way to a partner is started in one place alone."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tao_flows.federation.handover import Handover
from tao_flows.ledger import open_ledger


@pytest.fixture
def handover(tmp_path: Path) -> Iterator[Handover]:
    ledger = open_ledger(f"sqlite:///{tmp_path}/ledger.db")
    yield Handover(ledger, "org-b", "tao:1:")
    ledger.close()


def test_what_was_asked_for_is_not_started_here(handover: Handover) -> None:
    assert handover.ask("sent") is True
    assert handover.ask("sent by another process") is False
    assert handover.keep() is False
    handover.settle()
    handover.settle()
    assert handover.ask("once more") is False
    assert handover.keep() is False


def test_what_is_started_here_is_not_asked_for_any_more(handover: Handover) -> None:
    assert handover.keep() is True
    assert handover.keep() is True
    assert handover.ask("sent") is None
    assert Handover(handover.ledger, "org-b", "tao:2:").ask("sent") is True, "another run is another matter"


def test_of_many_processes_at_a_time_all_agree_on_one_place(handover: Handover) -> None:
    for number in range(20):
        one = Handover(handover.ledger, "org-b", f"tao:{number}:")
        with ThreadPoolExecutor(4) as pool:
            asked = [pool.submit(one.ask, str(each)) for each in range(2)]
            kept = [pool.submit(one.keep) for _ in range(2)]
        there = {each.result() is not None for each in asked}
        here = {each.result() for each in kept}
        assert there in ({True}, {False})
        assert here == {not there.pop()}
        assert sum(each.result() is True for each in asked) <= 1


def test_silence_counts_from_the_first_look_that_failed_until_one_succeeds(handover: Handover) -> None:
    handover.heard()
    assert handover.silent_s() == 0.0
    with handover.ledger.transaction() as tx:
        tx.change("UPDATE partners SET changed_wall_ns = changed_wall_ns - 60000000000")
    assert 60 <= handover.silent_s() < 90
    handover.heard()
    assert handover.silent_s() == 0.0
