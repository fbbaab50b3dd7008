"""The evidence on a model: the sum over its runs, and which are covered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import typer
from model_runs import MODEL, START, S, put_digits, put_run, put_task
from typer.testing import CliRunner

from tao_flows.cli.aggregate import aggregate_command
from tao_flows.errors import InputError
from tao_flows.figures import Quality
from tao_flows.governance.aggregate import model_support
from tao_flows.governance.keys import SigningKey, new_keys
from tao_flows.governance.sealer import Sealer
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.ledger.compaction import compact
from tao_flows.ledger.runpages import ref_of
from tao_flows.records import RunRecord, TaskState, Who

SCHEMA = Path(__file__).parents[2] / "tao_flows/governance/schema/annex_xi_support.json"
TRAIN_UJ = 123_456_789_012


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    opened = open_ledger(str(tmp_path / "ledger.db"))
    yield opened
    opened.close()


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    monkeypatch.setenv("TAO_FLOWS_LEDGER", str(tmp_path / "ledger.db"))
    made = typer.Typer()
    made.command()(aggregate_command)
    return made


def support(ledger: Ledger, **more: Any) -> dict[str, Any]:
    document = model_support(ledger, MODEL, now_wall_ns=START + 10_000 * S, **more)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    return document


def item(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [each for each in document["items"] if each["id"] == name]
    return dict(found)


def seal(ledger: Ledger, run: RunRecord, tmp_path: Path) -> Path:
    keys = tmp_path / "keys"
    if not keys.exists():
        new_keys(keys)
    key = SigningKey.load(keys / "signing.key")
    return Sealer(ledger, tmp_path / "bundles", key, "seal").seal(ref_of(run)).path


def test_the_runs_of_a_model_are_summed_and_others_left_out(ledger: Ledger) -> None:
    put_digits(ledger, "one")
    put_digits(ledger, "two", started_wall_ns=START + 1_000 * S)
    other = put_run(ledger, "other", who=Who(model_id="letters"))
    put_task(ledger, other, "train", 7)
    document = support(ledger)
    energy = item(document, "training_energy")
    assert energy["energy_uj"] == str(2 * TRAIN_UJ)
    assert "2 tries of tasks in 2 runs" in energy["method"]
    assert item(document, "training_time")["value"] == "80"
    covers = document["covers"]
    assert [each["run"]["run_id"] for each in covers["runs"]] == ["one", "two"]
    assert [each["energy_uj"] for each in covers["runs"]] == [str(TRAIN_UJ)] * 2
    assert (covers["complete"], covers["bundles"]) == (True, None)
    assert covers["energy_uj_by_quality"] == {"attributed": str(2 * TRAIN_UJ)}


def test_a_run_that_names_the_model_itself_counts_with_all_its_tasks(ledger: Ledger) -> None:
    run = put_run(ledger, who=Who(model_id=MODEL))
    put_task(ledger, run, "a", 5)
    put_task(ledger, run, "b", 7)
    put_task(ledger, run, "c", 11, model_id="letters")
    assert item(support(ledger), "training_energy")["energy_uj"] == "12"


def test_the_quality_is_the_worst_and_each_run_says_its_own(ledger: Ledger) -> None:
    one, two = (put_run(ledger, name, who=Who(model_id=MODEL)) for name in ("one", "two"))
    put_task(ledger, one, "a", 5, quality=Quality.MEASURED)
    put_task(ledger, two, "a", 7, quality=Quality.ESTIMATED)
    document = support(ledger)
    assert item(document, "training_energy")["status"] == "estimated"
    assert [each["quality"] for each in document["covers"]["runs"]] == ["measured", "estimated"]
    assert document["covers"]["energy_uj_by_quality"] == {"measured": "5", "estimated": "7"}


def test_runs_that_are_not_complete_or_lack_their_record_are_told(ledger: Ledger) -> None:
    run = put_run(ledger, who=Who(model_id=MODEL))
    put_task(ledger, run, "gone", 5, state=TaskState.LOST)
    unseen = replace(run, run_id="unseen")
    put_task(ledger, unseen, "a", 7, model_id=MODEL)
    covers = support(ledger)["covers"]
    assert covers["complete"] is False
    assert (covers["runs"][0]["complete"], covers["runs"][0]["energy_uj"]) == (False, None)
    assert covers["without_record"] == 1


def test_runs_that_were_summed_up_are_told_and_the_rest_is_not_called_complete(ledger: Ledger) -> None:
    for number in (1, 2):
        run = put_run(ledger, f"run-{number}", started_wall_ns=START + number * 200 * S, state="failed")
        put_task(ledger, run, "train", number * 1_000, model_id=MODEL, state=TaskState.FAILED)
    compact(ledger, START + 400 * S, rest=lambda _: None)
    covers = support(ledger)["covers"]
    assert [each["energy_uj"] for each in covers["runs"]] == ["2000"]
    assert (covers["complete"], covers["summed_up"]) == (
        False, {"tries": 1, "energy_uj_by_quality": {"attributed": "1000"}},
    )  # fmt: skip
    compact(ledger, START + 900 * S, rest=lambda _: None)
    with pytest.raises(InputError, match="report --totals"):
        support(ledger)


def test_since_leaves_earlier_runs_out(ledger: Ledger) -> None:
    put_digits(ledger, "one")
    put_digits(ledger, "two", started_wall_ns=START + 1_000 * S)
    document = support(ledger, since_wall_ns=START + 500 * S)
    assert [each["run"]["run_id"] for each in document["covers"]["runs"]] == ["two"]
    assert document["covers"]["since"] == "2026-05-28T20:35:00.000000Z"


def run_cli(app: typer.Typer, *args: str) -> tuple[int, dict[str, Any], str]:
    result = CliRunner().invoke(app, [*args])
    document = json.loads(result.stdout) if "--json" in args and result.stdout else {}
    return result.exit_code, document, result.stdout + result.stderr


def bundles_args(tmp_path: Path) -> list[str]:
    return ["--bundles", str(tmp_path / "bundles"), "--key", str(tmp_path / "keys/signing.pub")]


def test_bundles_that_hold_and_agree_are_told_from_runs_without_one(
    ledger: Ledger, app: typer.Typer, tmp_path: Path
) -> None:
    seal(ledger, put_digits(ledger, "one"), tmp_path)
    put_digits(ledger, "two", started_wall_ns=START + 1_000 * S)
    other = put_run(ledger, "other")
    seal(ledger, other, tmp_path)
    status, document, _ = run_cli(app, "--model-id", MODEL, *bundles_args(tmp_path), "--json")
    covers = document["covers"]
    assert status == 0
    assert [each["bundle"]["status"] for each in covers["runs"]] == ["verified", "absent"]
    assert covers["bundles"] == {"verified": 1, "refused": 0, "differing": 0, "absent": 1, "of_other_runs": 1}


def test_a_bundle_that_was_tampered_with_is_refused_with_the_code(
    ledger: Ledger, app: typer.Typer, tmp_path: Path
) -> None:
    path = seal(ledger, put_digits(ledger, "one"), tmp_path)
    energy = path / "energy.json"
    energy.write_text(energy.read_text().replace(str(TRAIN_UJ), str(TRAIN_UJ - 1)))
    status, document, _ = run_cli(app, "--model-id", MODEL, *bundles_args(tmp_path), "--json")
    (run,) = document["covers"]["runs"]
    assert status == 1
    assert (run["bundle"]["status"], run["bundle"]["failures"]) == ("refused", ["DIGEST_MISMATCH"])


def test_a_ledger_that_says_another_energy_than_the_signed_bundle_is_told(
    ledger: Ledger, app: typer.Typer, tmp_path: Path
) -> None:
    run = put_digits(ledger, "one")
    seal(ledger, run, tmp_path)
    with ledger.transaction() as tx:
        tx.execute("UPDATE tasks SET body = replace(body, :was, :now)", was=str(TRAIN_UJ), now=str(TRAIN_UJ - 1))
    status, document, _ = run_cli(app, "--model-id", MODEL, *bundles_args(tmp_path), "--json")
    (found,) = document["covers"]["runs"]
    assert status == 1
    assert (found["bundle"]["status"], found["bundle"]["failures"]) == ("differing", ["ENERGY_DIFFERS"])


def test_the_latest_revision_speaks_for_a_run_and_a_forged_one_does_not(
    ledger: Ledger, app: typer.Typer, tmp_path: Path
) -> None:
    run = put_digits(ledger, "one")
    path = seal(ledger, run, tmp_path)
    put_task(ledger, run, "late", 9, model_id=MODEL)
    assert seal(ledger, run, tmp_path) != path
    forged = tmp_path / "bundles/zzz"
    forged.mkdir()
    (forged / "run.json").write_text((path / "run.json").read_text())
    status, document, _ = run_cli(app, "--model-id", MODEL, *bundles_args(tmp_path), "--json")
    assert status == 0
    (found,) = document["covers"]["runs"]
    assert (found["bundle"]["status"], found["energy_uj"]) == ("verified", str(TRAIN_UJ + 9))


def test_the_table_names_runs_items_and_scope(ledger: Ledger, app: typer.Typer, tmp_path: Path) -> None:
    seal(ledger, put_digits(ledger, "one", name="fox"), tmp_path)
    status, _, said = run_cli(app, "--model-id", MODEL, *bundles_args(tmp_path))
    assert status == 0
    for word in ("model digits", "provider-input-required", "3.43E-5 MWh", str(TRAIN_UJ), "1 run covered"):
        assert word in said
    assert "does not establish compliance" in said


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--model-id", "nobody's"), "[MODEL_NOT_FOUND]"),
        (("--model-id", MODEL, "--bundles", "/nowhere"), "--bundles and --key go together"),
        (("--model-id", MODEL, "--provider", "/nowhere.yaml"), "No such file"),
        (("--model-id", MODEL, "--since", "never"), "--since"),
    ],
)
def test_bad_usage_is_one_line_and_exit_status_two(
    ledger: Ledger, app: typer.Typer, args: tuple[str, ...], said: str
) -> None:
    put_digits(ledger)
    status, _, output = run_cli(app, *args)
    assert status == 2
    assert said in output
    assert output.count("\n") == 1


def test_inputs_of_another_model_are_refused(ledger: Ledger, app: typer.Typer, tmp_path: Path) -> None:
    put_digits(ledger)
    inputs = tmp_path / "provider.yaml"
    inputs.write_text("model: {id: letters}")
    status, _, output = run_cli(app, "--model-id", MODEL, "--provider", str(inputs))
    assert status == 2
    assert "the provider inputs are of model 'letters'" in output
