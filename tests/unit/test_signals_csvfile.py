"""Signals in CSV files: strict, and clear about what is wrong and where."""

from __future__ import annotations

from pathlib import Path

import pytest

from tao_flows.errors import InputError
from tao_flows.signals.csvfile import Row, read_rows, read_series
from tao_flows.signals.model import Issue

S = 1_000_000_000
T0 = 1_772_366_400 * S  # 2026-03-01T12:00:00Z
H = 3600 * S
HEAD = "time,zone,value,issued_at\n"


def written(directory: Path, text: str | bytes) -> Path:
    path = directory / "signal.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(path: Path, **options: object) -> InputError:
    with pytest.raises(InputError) as caught:
        list(read_rows(path, **options))  # type: ignore[arg-type]
    error = caught.value
    assert error.code == "BAD_SIGNAL_FILE"
    assert error.summary.startswith(str(path))
    assert "\n" not in str(error)
    assert error.remedy
    return error


def test_values_and_forecasts_are_told_apart_by_zone(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        HEAD
        + "2026-03-01T12:00:00Z,DE,300,\n"
        + "2026-03-01T12:00:00Z,DE,310,2026-03-01T11:00:00Z\n"
        + "2026-03-01T13:00:00Z,DE,290,2026-03-01T11:00:00Z\n"
        + "2026-03-01T13:00:00+00:00,FR,50,\n"
        + "2026-03-01T14:00:00+01:00,DE,305,\n"
        + "2026-03-01T13:00:00Z,DE,280,2026-03-01T12:00:00Z\n",
    )
    series = read_series(path)
    assert set(series) == {"DE", "FR"}
    assert series["DE"].actuals == ((T0, 300.0), (T0 + H, 305.0))
    assert series["DE"].issues == (
        Issue(T0 - H, ((T0, 310.0), (T0 + H, 290.0))),
        Issue(T0, ((T0 + H, 280.0),)),
    )
    assert series["FR"].issues == ()


def test_columns_may_stand_in_any_order_and_blank_lines_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbfvalue,time,zone\r\n\r\n1.5,2026-03-01T12:00:00Z,DE\r\n")
    assert list(read_rows(path)) == [Row(3, T0, "DE", 1.5, None)]


def test_a_column_of_another_name_is_read_in_its_unit_beside_columns_of_no_concern(tmp_path: Path) -> None:
    path = written(tmp_path, "time,zone,load,eur\n2026-03-01T12:00:00Z,DE,77,-40\n")
    assert [row.value for row in read_rows(path, column="eur", factor=0.001)] == [-0.04]


def test_rows_are_read_one_at_a_time(tmp_path: Path) -> None:
    path = written(tmp_path, HEAD + "2026-03-01T12:00:00Z,DE,300,\nrubbish\n")
    rows = read_rows(path)
    assert next(rows).value == 300.0
    with pytest.raises(InputError, match=":3:"):
        next(rows)


@pytest.mark.parametrize(
    ("lines", "line", "part"),
    [
        ("2026-03-01T12:00:00,DE,1,\n", 2, "no zone"),
        ("2026-02-30T12:00:00Z,DE,1,\n", 2, "exists"),
        ("yesterday,DE,1,\n", 2, "not a time"),
        ("1950-03-01T12:00:00Z,DE,1,\n", 2, "1970"),
        ("2026-03-01T12:00:00Z,DE,1,soon\n", 2, "'soon'"),
        ("2026-03-01T12:00:00Z,,1,\n", 2, "zone"),
        ("2026-03-01T12:00:00Z,DE,,\n", 2, "not a number"),
        ("2026-03-01T12:00:00Z,DE,1_000,\n", 2, "not a number"),
        ("2026-03-01T12:00:00Z,DE,nan,\n", 2, "finite"),
        ("2026-03-01T12:00:00Z,DE,-inf,\n", 2, "finite"),
        ("2026-03-01T12:00:00Z,DE,1e300,\n", 2, "beyond"),
        ("2026-03-01T12:00:00Z,DE,-1,\n", 2, "negative"),
        ("2026-03-01T12:00:00Z,DE,1\n", 2, "3 fields"),
        ("2026-03-01T12:00:00Z,DE,1,,\n", 2, "5 fields"),
        ("2026-03-01T12:00:00Z,DE,1,\n2026-03-01T12:00:00Z,DE,1,\n", 3, "twice"),
        ("2026-03-01T12:00:00Z,DE,1,\n2026-03-01T11:00:00Z,DE,1,\n", 3, "before"),
        (
            "2026-03-01T12:00:00Z,DE,1,2026-03-01T11:00:00Z\n2026-03-01T12:00:00Z,DE,2,2026-03-01T11:00:00Z\n",
            3,
            "twice",
        ),
        ('2026-03-01T12:00:00Z,"DE,1,\n', 2, ""),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, lines: str, line: int, part: str) -> None:
    error = refused(written(tmp_path, HEAD + lines), signal="carbon_g_per_kwh")
    assert f":{line}: " in error.summary
    assert part in error.summary


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "empty"),
        ("time,value\n", "'zone'"),
        ("time,zone,value,issued\n", "'issued'"),
        ("time,zone,value,value\n", "twice"),
        (b"time,zone,value\n\xff\xfe", "UTF-8"),
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, text: str | bytes, part: str) -> None:
    assert part in refused(written(tmp_path, text)).summary


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "No such file" in refused(tmp_path / "none.csv").summary


def test_a_price_may_be_negative(tmp_path: Path) -> None:
    path = written(tmp_path, "time,zone,value\n2026-03-01T12:00:00Z,DE,-1\n")
    assert [row.value for row in read_rows(path, signal="price_per_kwh")] == [-1.0]
