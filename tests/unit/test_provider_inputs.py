"""What the provider of a model states, read from YAML."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import pytest

from tao_flows.errors import InputError
from tao_flows.governance.provider import DataFacts, ProviderInputs, load_provider_inputs

EXAMPLE = Path(__file__).parents[2] / "examples/governance/provider.yaml"


def load(tmp_path: Path, text: str) -> ProviderInputs:
    path = tmp_path / "provider.yaml"
    path.write_text(text)
    return load_provider_inputs(path)


def test_the_example_is_read_without_loss() -> None:
    inputs = load_provider_inputs(EXAMPLE)
    assert (inputs.organisation, inputs.activity, inputs.model.id) == ("Example Models Ltd", "training", "digits")
    assert inputs.model.parameters == Decimal("1.2e6")
    assert inputs.hardware is not None
    assert inputs.hardware.peak_flop_per_s == 989 * 10**12
    assert (inputs.hardware.units, inputs.hardware.utilisation, inputs.hardware.time_s) == (8, Decimal("0.41"), None)
    assert inputs.compute_error == Decimal("0.2")
    assert inputs.inference_flop == 2_400_000
    assert inputs.elsewhere_uj == 5_400_000_000_000_000
    assert inputs.data == (DataFacts("image", Decimal(60_000), "public"),)
    assert (inputs.infrastructure, inputs.country) == ("onPremise", "France")


def test_an_empty_file_states_nothing(tmp_path: Path) -> None:
    assert load(tmp_path, "# nothing yet\n") == ProviderInputs()


@pytest.mark.parametrize(
    ("text", "said", "remedy"),
    [
        ("organization: X", "line 1: organization is unknown", "did you mean 'organisation'?"),
        ("model:\n  paramters: 3", "line 2: model: paramters is unknown", "did you mean 'parameters'?"),
        ("model:\n  parameters: many", "line 2: model: parameters is 'many', which is no number", "no unit"),
        ("model:\n  parameters: -7", "model: parameters is '-7', which is not above 0", "above 0"),
        ("model:\n  parameters: 7 B", "'7 B', whose unit 'B' is not known here", "no unit"),
        ("model: digits", "model is no table of keys and values", "known keys: id"),
        ("model:\n  name: [a, b]", "model: name is a list or a table", "one value"),
        ("country: ''", "country is empty", "1 to 500"),
        ("activity: trainig", "activity is 'trainig', not one of", "did you mean 'training'?"),
        ("data: image", "data is no list", "dash"),
        ("data:\n  - items: 3", "line 2: data: 1 has no type", "add type"),
        ("energy_elsewhere: {amount: 12, method: m}", "amount is '12', without a unit", "MWh"),
        ("energy_elsewhere: {amount: 12 kW, method: m}", "whose unit 'kW' is not known here", "MWh"),
        ("energy_elsewhere: {amount: 12 MWh}", "energy_elsewhere has no method", "add method"),
        ("inference: {flop: nan, method: m}", "'nan', which is no number", "FLOP"),
        ("compute:\n  hardware: {units: 8, peak: 1 TFLOP, utilisation: 0.4}", "unit 'TFLOP' is not known", "FLOP/s"),
        ("compute:\n  hardware: {units: 8, peak: 1 TFLOP/s, utilisation: 41}", "at most 1", "at most 1"),
        ("compute:\n  hardware: {units: 8, peak: 1 TFLOP/s}", "hardware has no utilisation", "add utilisation"),
        ("compute:\n  architecture: {tokens: 1e9}", "without model: parameters", "6 * parameters * tokens"),
        (
            "compute:\n  hardware: {units: 8, peak: 1 TFLOP/s, utilisation: 0.4}\n  architecture: {tokens: 1e9}",
            "both compute: hardware and compute: architecture",
            "leave one of them out",
        ),
        ("country: France\ncountry: Spain", "line 2: country is there twice", "leave one of them out"),
        ("a: [1", "line 1", "correct the file"),
        ("- 1\n", "the file is no table", "known keys"),
        ("? [a]\n: 1", "a key that is no word is unknown", ""),
        ("country: \x01", "", "correct the file"),
        ("&a [*a]", "", ""),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place_and_a_remedy(tmp_path: Path, text: str, said: str, remedy: str) -> None:
    with pytest.raises(InputError) as caught:
        load(tmp_path, text)
    assert caught.value.code == "PROVIDER_INPUTS"
    assert said in caught.value.summary
    assert str(tmp_path / "provider.yaml") in caught.value.summary
    assert "\n" not in caught.value.summary
    assert remedy in caught.value.remedy


def test_a_file_that_cannot_be_read_or_is_too_large_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        load_provider_inputs(tmp_path / "none.yaml")
    with pytest.raises(InputError, match="larger than"):
        load(tmp_path, "# " + "x" * (1 << 20))
