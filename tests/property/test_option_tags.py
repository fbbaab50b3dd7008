"""Options as an engine's tags: what the code says can be read by who cannot import it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao_flows.budget import EnergyBudget
from tao_flows.errors import InputError
from tao_flows.options import OFF, as_tags, made, make_options, of_tags

WORDS = st.text("abcdefghij-_.", min_size=1, max_size=8)
SECONDS = st.floats(0.001, 1e6).map(lambda value: round(value, 6))
OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "team": WORDS,
        "owner": WORDS,
        "tao_tags": st.lists(WORDS, min_size=1, max_size=3),
        "budget": st.sampled_from(["team-ml", "40 J", "1.5 kWh"]),
        "deadline": st.one_of(
            SECONDS, st.sampled_from(["by 06:00 Europe/Berlin", "2h after run_start", "by 23:30 UTC", "90s"])
        ),
        "max_defer": SECONDS,
        "deferrable": st.booleans(),
        "reroutable": st.booleans(),
        "allowed_zones": st.lists(WORDS, min_size=1, max_size=3),
        "requires": st.lists(WORDS, min_size=1, max_size=3),
        "size": st.floats(0, 1e9),
    },
)


@given(OPTIONS)
def test_what_options_say_is_read_again_from_their_tags(given_options: dict[str, Any]) -> None:
    options = make_options(**given_options)
    tags = as_tags(options)
    assert made(of_tags([*tags, "team:other", "nightly"])) == options
    assert all(tag.startswith("tao:") for tag in tags)


def test_a_flag_needs_no_value_and_off_is_one() -> None:
    assert of_tags(["tao:deferrable", "tao:off", "tao:reroutable=False", "x"]) == {
        "deferrable": True, OFF: True, "reroutable": False,
    }  # fmt: skip
    assert of_tags(["tao:allowed-zones=DE, FR"]) == {"allowed_zones": ["DE", "FR"]}


@pytest.mark.parametrize(
    ("tag", "said"),
    [
        ("tao:deadlin=2h", "did you mean 'deadline'"),
        ("tao:deadline", "it has no value"),
        ("tao:max_defer=soon", "tag 'tao:max_defer=soon': max_defer"),
        ("tao:deferrable=perhaps", "tag 'tao:deferrable=perhaps'"),
        ("tao:size=big", "tag 'tao:size=big'"),
    ],
)
def test_a_wrong_tag_is_named_with_what_is_wrong(tag: str, said: str) -> None:
    with pytest.raises(InputError) as raised:
        of_tags(["tao:deferrable", tag])
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_budget_that_no_tag_can_say_is_refused_with_what_to_do() -> None:
    with pytest.raises(InputError, match="configuration"):
        as_tags(make_options(budget=EnergyBudget("", 40.0, ceiling_j=50.0)))
    assert as_tags(make_options(budget=EnergyBudget("team-ml", 40.0, ceiling_j=50.0))) == ("tao:budget=team-ml",)
