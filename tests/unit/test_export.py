"""The export: one row a task segment, in three forms, and back."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from tao_flows.cli.export import export_command
from tao_flows.errors import InputError, MissingExtraError
from tao_flows.figures import Account, CpuTime, Figure, Measurement, Quality
from tao_flows.ledger import open_ledger
from tao_flows.ledger.base import Ledger
from tao_flows.records import DecisionRecord, RunKey, RunRecord, Segment, TaskRecord, TaskState, Who
from tao_flows.report.export import COLUMNS, EXPORT_VERSION, dictionary_json, export_rows, load_frame

S = 1_000_000_000
NOW = time.time_ns() // S * S
HOST = Segment("node-1", "boot", 1, 1)
FORMS = ["csv", "jsonl", "parquet"]
FROZEN = (
    "schema engine namespace flow run_id run_name run_state task task_label instance map_index try_number segment host "
    "state pool budget team owner cluster model_id tags started ended wall_s cpu_s cpu_source cpu_covers_children "
    "cpu_lower_bound energy_j low_j high_j quality coverage sources unknown_parts power_w memory_bytes "
    "model method events decision_action decision_pool decision_mode decision_enforced regime penalty utilisation"
)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Ledger]:
    path = tmp_path / "ledger.db"
    monkeypatch.setenv("TAO_FLOWS_LEDGER", str(path))
    opened = open_ledger(str(path))
    yield opened
    opened.close()


def put(ledger: Ledger, run_id: str = "run-1", started: int = NOW - 60 * S, **more: Any) -> TaskRecord:
    measured = Measurement(
        "train", started, 2.0, CpuTime(0.5, "perf", covers_children=True),
        Figure(2_500_000, 1_250_000, 5_000_000, Quality.ESTIMATED, ("estimate",)), (), Account(), model="m/1",
        memory_bytes=2**40,
    )  # fmt: skip
    record = TaskRecord(
        RunKey("prefect", "default", "nightly", run_id, "train", "a", 1), HOST, TaskState.COMPLETED, started,
        who=Who(team="ml", tags=("a,b", "größe")), pool="home", ended_wall_ns=started + 2 * S, measurement=measured,
    )  # fmt: skip
    record = replace(record, **more)
    ledger.put_run(RunRecord("prefect", "default", "nightly", run_id, "completed", started, HOST, name="amber-fox"))
    ledger.put_task(record)
    return record


def put_lost(ledger: Ledger) -> None:
    key = RunKey("prefect", "default", "nightly", "run-1", "gone", "b", 1)
    put(ledger, key=key, state=TaskState.LOST, ended_wall_ns=None, measurement=None, who=Who(), pool="")


def export(*arguments: str) -> Any:
    app = typer.Typer()
    app.command()(export_command)
    return CliRunner().invoke(app, list(arguments))


def exported(form: str, path: Path) -> Path:
    target = path / f"out.{form}"
    shown = export("--format", form, "--out", str(target))
    assert shown.exit_code == 0, shown.stderr
    assert shown.stdout == ""
    return target


def test_the_columns_are_a_contract() -> None:
    assert EXPORT_VERSION == "tao-flows/export/1"
    assert " ".join(column.name for column in COLUMNS) == FROZEN
    assert {column.type for column in COLUMNS} == {"text", "integer", "number", "boolean", "time"}
    assert all(column.description for column in COLUMNS)
    for column in COLUMNS:
        assert column.unit == {"_s": "s", "_j": "J", "_w": "W"}.get(column.name[-2:], column.unit)


def test_the_dictionary_is_printed_as_json_without_a_ledger() -> None:
    shown = export("--dictionary")
    assert shown.exit_code == 0
    assert json.loads(shown.stdout) == dictionary_json()
    energy = next(c for c in dictionary_json()["columns"] if c["name"] == "energy_j")
    assert (energy["unit"], energy["type"]) == ("J", "number")


def test_csv_has_a_header_and_one_row_a_segment(ledger: Ledger, tmp_path: Path) -> None:
    put(ledger)
    put(ledger, segment=replace(HOST, sequence=1))
    with exported("csv", tmp_path).open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2
    assert list(rows[0]) == FROZEN.split()
    assert (rows[0]["energy_j"], rows[0]["low_j"], rows[0]["quality"]) == ("2.5", "1.25", "estimated")
    assert json.loads(rows[0]["tags"]) == ["a,b", "größe"]
    assert rows[0]["cpu_covers_children"] == "true"
    assert rows[0]["schema"] == EXPORT_VERSION


def test_unknown_is_empty_or_null_and_never_zero(ledger: Ledger, tmp_path: Path) -> None:
    put_lost(ledger)
    unknown = ("energy_j", "low_j", "high_j", "cpu_s", "wall_s", "power_w", "memory_bytes", "ended", "penalty", "pool")
    with exported("csv", tmp_path).open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert [row[name] for name in unknown] == [""] * len(unknown)
    assert (row["state"], row["quality"]) == ("lost", "unknown")
    (line,) = exported("jsonl", tmp_path).read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)[name] for name in unknown] == [None] * len(unknown)
    frame = load_frame(exported("parquet", tmp_path))
    assert frame[list(unknown)].isna().all(axis=None)


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "'=1", "'", "it's", "a=b", 'größe, "x"\n'])
@pytest.mark.parametrize("form", FORMS)
def test_names_come_back_as_they_went_in(ledger: Ledger, tmp_path: Path, form: str, name: str) -> None:
    put(ledger, who=Who(team=name), task_label=name)
    frame = load_frame(exported(form, tmp_path))
    assert (frame["team"][0], frame["task_label"][0]) == (name, name)


@pytest.mark.parametrize("name", ["=cmd|' /C calc'!A0", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "'=1"])
def test_no_text_cell_of_the_csv_begins_a_formula(ledger: Ledger, tmp_path: Path, name: str) -> None:
    put(ledger, who=Who(team=name, owner=name, cluster=name), task_label=name, pool=name, budget=name)
    with exported("csv", tmp_path).open(newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert not [cell for cell in row.values() if cell.startswith(("=", "+", "-", "@", "\t", "\r"))]
    assert row["team"] == f"'{name}"


@pytest.mark.parametrize("form", FORMS)
def test_every_form_loads_as_the_frame_of_the_ledger_itself(ledger: Ledger, tmp_path: Path, form: str) -> None:
    import pandas.testing

    record = put(ledger, map_index=3)
    put_lost(ledger)
    answer = {"penalty": 1.25, "utilisation": None, "regime": "standard"}
    ledger.put_decision(DecisionRecord(record.key, NOW, "advise", "run", "home", "cheapest", {}, answer))
    whole = load_frame(ledger)
    pandas.testing.assert_frame_equal(load_frame(exported(form, tmp_path)), whole)
    assert whole["energy_j"].sum() == 2.5
    assert whole["energy_j"].isna().sum() == 1
    dtypes = whole.dtypes.astype(str)
    assert dtypes[["energy_j", "map_index", "cpu_lower_bound"]].to_list() == ["Float64", "Int64", "boolean"]
    assert dtypes["started"] == "datetime64[us, UTC]"
    assert whole["memory_bytes"].dropna().to_list() == [2**40]
    assert whole["penalty"].dropna().to_list() == [1.25, 1.25][: whole["penalty"].notna().sum()]


def test_parquet_carries_its_version_and_dictionary(ledger: Ledger, tmp_path: Path) -> None:
    import pyarrow.parquet

    put(ledger)
    metadata = pyarrow.parquet.read_schema(exported("parquet", tmp_path)).metadata
    assert metadata[b"tao-flows:export"] == b"tao-flows/export/1"
    assert json.loads(metadata[b"tao-flows:dictionary"]) == dictionary_json()["columns"]


def test_the_last_decision_about_a_try_is_the_one_exported(ledger: Ledger) -> None:
    record = put(ledger)
    for at, action in enumerate(("defer", "run")):
        ledger.put_decision(DecisionRecord(record.key, NOW + at, "enforce", action, "home", "", {}, {"penalty": 1.5}))
    (row,) = export_rows(ledger)
    assert (row["decision_action"], row["decision_mode"], row["penalty"]) == ("run", "enforce", 1.5)


def test_only_runs_since_are_exported(ledger: Ledger) -> None:
    put(ledger, "old", NOW - 10 * 86_400 * S)
    put(ledger, "new")
    shown = export("--format", "jsonl", "--out", "-", "--since", "7d")
    assert [json.loads(line)["run_id"] for line in shown.stdout.splitlines()] == ["new"]


def test_rows_on_standard_output_stand_alone(ledger: Ledger) -> None:
    put(ledger)
    shown = export("--format", "csv", "--out", "-")
    assert len(list(csv.reader(io.StringIO(shown.stdout)))) == 2
    assert "wrote 1 row" in shown.stderr


def test_parquet_goes_through_a_pipe(ledger: Ledger) -> None:
    import pyarrow.parquet

    put(ledger)
    code = "import typer; from tao_flows.cli.export import export_command; typer.run(export_command)"
    command = [sys.executable, "-c", code, "--format", "parquet", "--out", "-"]
    done = subprocess.run(command, capture_output=True, check=True, timeout=120)
    assert pyarrow.parquet.read_table(io.BytesIO(done.stdout)).num_rows == 1


def test_json_says_what_was_written(ledger: Ledger, tmp_path: Path) -> None:
    put(ledger)
    out = str(tmp_path / "x.csv")
    made = json.loads(export("--format", "csv", "--out", out, "--json").stdout)
    assert made == {"schema": EXPORT_VERSION, "format": "csv", "out": out, "rows": 1}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--format"),
        (("--format", "xml", "--out", "-"), "'xml'"),
        (("--format", "csv"), "--out"),
        (("--format", "csv", "--out", "-", "--json"), "--json"),
        (("--format", "csv", "--out", "-", "--since", "soon"), "not a duration"),
        (("--format", "csv", "--out", "/nowhere/at/all.csv"), "No such file"),
    ],
)
def test_bad_usage_ends_with_2_and_one_line(ledger: Ledger, arguments: tuple[str, ...], said: str) -> None:
    put(ledger)
    shown = export(*arguments)
    assert shown.exit_code == 2
    assert len(shown.stderr.splitlines()) == 1
    assert said in shown.stderr


def test_an_empty_ledger_ends_with_2(ledger: Ledger, tmp_path: Path) -> None:
    shown = export("--format", "csv", "--out", str(tmp_path / "x.csv"))
    assert shown.exit_code == 2
    assert "no runs recorded yet" in shown.stderr
    assert not (tmp_path / "x.csv").exists()


def test_an_export_that_fails_leaves_the_file_that_was_there(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(ledger)
    target = tmp_path / "x.parquet"
    target.write_bytes(b"kept")
    # None in sys.modules is how Python says that a module cannot be imported.
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    shown = export("--format", "parquet", "--out", str(target))
    assert shown.exit_code == 2
    assert "pip install 'tao-flows[reports]'" in shown.stderr
    assert target.read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir() if "partial" in path.name) == []


def test_the_loader_without_its_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="reports"):
        load_frame(tmp_path / "x.csv")


@pytest.mark.parametrize(
    ("name", "content", "code"),
    [
        ("missing.csv", None, "UNREADABLE"),
        ("other.csv", "a,b\n1,2\n", "NOT_AN_EXPORT"),
        ("empty.csv", "", "NOT_AN_EXPORT"),
        ("rubbish.jsonl", "{", "NOT_AN_EXPORT"),
        ("other.jsonl", '{"a": 1}\n', "NOT_AN_EXPORT"),
        ("list.jsonl", "[1]\n", "NOT_AN_EXPORT"),
        ("rubbish.parquet", "no", "NOT_AN_EXPORT"),
        ("table.xlsx", "", "NOT_AN_EXPORT"),
    ],
)
def test_what_is_no_export_is_refused_in_one_line(tmp_path: Path, name: str, content: str | None, code: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        load_frame(path)
    assert raised.value.code == code
    assert "\n" not in str(raised.value)


def test_an_export_of_another_version_is_refused(ledger: Ledger, tmp_path: Path) -> None:
    put(ledger)
    path = exported("csv", tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("export/1", "export/2"), encoding="utf-8")
    with pytest.raises(InputError, match="NOT_AN_EXPORT"):
        load_frame(path)
