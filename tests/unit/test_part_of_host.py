"""A part of a host's account, beside other parts of the same host."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tao_flows.attribution import even_part, part_of_host
from tao_flows.figures import Account, Quality


def test_the_account_of_a_part_of_a_host_sums_to_the_counter_or_the_estimate_that_it_is_of():
    counted = part_of_host(Account(counter_uj=100, quality=Quality.ATTRIBUTED), tasks_uj=30, overhead_uj=7)
    assert (counted.counter_uj, counted.estimate_uj, counted.idle_uj, counted.unattributed_uj) == (37, None, None, None)
    estimated = part_of_host(Account(estimate_uj=100, quality=Quality.ESTIMATED), tasks_uj=None, overhead_uj=7)
    assert (estimated.counter_uj, estimated.estimate_uj, estimated.tasks_uj) == (None, 7, None)
    both = Account(counter_uj=30, estimate_uj=70, quality=Quality.ESTIMATED)
    mixed = part_of_host(both, tasks_uj=50, overhead_uj=51, idle_uj=1)
    assert (mixed.counter_uj or 0) + (mixed.estimate_uj or 0) == 102


@given(st.integers(0, 10**12), st.integers(1, 50))
def test_even_parts_are_the_whole_to_the_microjoule(whole_uj, sharers):
    parts = [even_part(whole_uj, sharers, position) for position in range(sharers)]
    assert sum(parts) == whole_uj
    assert max(parts) - min(parts) <= 1
    assert even_part(None, sharers, 0) is None
