"""Amounts in documents are the ledger's to the last digit."""

from __future__ import annotations

import json
from decimal import ROUND_HALF_EVEN, Context, Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao_flows.governance.amounts import (
    UJ_PER_KWH,
    UJ_PER_MWH,
    joules_from_uj,
    json_text,
    kwh_from_uj,
    mwh_from_uj,
    plain_number,
    short_number,
    uj_from_mwh,
)

energies = st.integers(min_value=0, max_value=10**30)
WIDE = Context(prec=80, rounding=ROUND_HALF_EVEN)


def back(amount: str, uj_per_unit: int) -> int:
    """Whole microjoules of a written amount."""
    return int(WIDE.multiply(Decimal(amount), Decimal(uj_per_unit)).to_integral_value(ROUND_HALF_EVEN))


@given(energies)
def test_every_amount_that_is_written_is_read_back_as_the_same_microjoule(energy_uj: int) -> None:
    assert back(plain_number(joules_from_uj(energy_uj)), 10**6) == energy_uj
    assert back(plain_number(kwh_from_uj(energy_uj)), UJ_PER_KWH) == energy_uj
    assert back(plain_number(mwh_from_uj(energy_uj)), UJ_PER_MWH) == energy_uj
    assert uj_from_mwh(mwh_from_uj(energy_uj)) == energy_uj


@given(energies)
def test_units_are_a_thousand_and_three_point_six_million_apart(energy_uj: int) -> None:
    assert abs(WIDE.multiply(mwh_from_uj(energy_uj), Decimal(1_000)) - kwh_from_uj(energy_uj)) <= Decimal("1e-13")
    joules = WIDE.multiply(kwh_from_uj(energy_uj), Decimal(3_600_000))
    assert abs(WIDE.subtract(joules, joules_from_uj(energy_uj))) < Decimal("5e-7")


@given(st.dictionaries(st.text(), energies), st.floats(allow_nan=False, allow_infinity=False))
def test_json_keeps_every_digit_and_is_read_by_any_reader(values: dict[str, int], number: float) -> None:
    document = {"amounts": {key: kwh_from_uj(uj) for key, uj in values.items()}, "list": [number, None, True, "é\n"]}
    read = json.loads(json_text(document), parse_float=Decimal, parse_int=Decimal)
    assert {key: back(str(amount), UJ_PER_KWH) for key, amount in read["amounts"].items()} == values
    assert json.loads(json_text(document))["list"] == [number, None, True, "é\n"]


@given(energies)
def test_a_short_number_has_three_digits_of_the_exact_one(energy_uj: int) -> None:
    exact, short = kwh_from_uj(energy_uj), Decimal(short_number(kwh_from_uj(energy_uj)))
    assert len(short.normalize().as_tuple().digits) <= 3
    assert abs(short - exact) <= abs(exact) / 200


@pytest.mark.parametrize(
    ("energy_uj", "kwh", "mwh"),
    [
        (0, "0", "0"),
        (1, "0.0000000000003", "0.0000000000000003"),
        (3_600_000_000_000, "1", "0.001"),
        (2**63 - 1, "2562047.7880152155019", "2562.0477880152155019"),
    ],
)
def test_known_amounts(energy_uj: int, kwh: str, mwh: str) -> None:
    assert (plain_number(kwh_from_uj(energy_uj)), plain_number(mwh_from_uj(energy_uj))) == (kwh, mwh)


def test_what_json_has_no_word_for_is_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_text({"a": [float("nan")]})
    with pytest.raises(TypeError):
        json_text({"a": object()})
