"""Copies of bundles elsewhere, and whether lineage events go anywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tao_flows.config import load_config
from tao_flows.errors import BundleError, ConfigError, MissingExtraError
from tao_flows.governance.lineage import is_configured
from tao_flows.governance.storage import store


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    path = tmp_path / "run-1.zip"
    path.write_bytes(b"first")
    return path


def test_a_copy_is_made_in_a_folder_and_a_later_one_takes_its_place(archive: Path, tmp_path: Path) -> None:
    address = store(archive, f"file://{tmp_path}/deep/er")
    assert address == f"file://{tmp_path}/deep/er/run-1.zip"
    archive.write_bytes(b"second")
    store(archive, str(tmp_path / "deep/er"))
    assert (tmp_path / "deep/er/run-1.zip").read_bytes() == b"second"


def test_a_place_of_no_known_kind_is_a_wrong_setting(archive: Path) -> None:
    with pytest.raises(ConfigError, match="BUNDLE_STORAGE"):
        store(archive, "carrier-pigeon://roof/left")


def test_a_kind_of_place_that_needs_more_names_the_extra(archive: Path) -> None:
    with pytest.raises(MissingExtraError, match="governance"):
        store(archive, "s3://bucket/records")


def test_a_place_that_cannot_be_written_is_said_without_its_password(archive: Path) -> None:
    (archive.parent / "file").write_text("")
    with pytest.raises(BundleError, match="BUNDLE_NOT_STORED"):
        store(archive, f"file://{archive.parent}/file")
    with pytest.raises(BundleError) as said:
        store(archive, "ftp://ada:hunter2@127.0.0.1:9/records")
    assert "hunter2" not in str(said.value)


@pytest.mark.parametrize(
    ("given", "kept"),
    [("s3://bucket/a", "s3://bucket/a"), ("results", "results"), ("copies", "/here/copies"), ("/abs", "/abs")],
)
def test_a_relative_path_in_the_settings_is_relative_to_them(given: str, kept: str) -> None:
    env = {"TAO_FLOWS_BUNDLE_STORAGE": given, "HOME": "/nowhere"}
    assert load_config(env=env, cwd=Path("/here")).config.bundle_storage == kept


def test_lineage_goes_somewhere_only_where_somebody_has_said_where(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not is_configured({})
    assert is_configured({"OPENLINEAGE_URL": "http://127.0.0.1:1"})
    assert is_configured({"OPENLINEAGE__TRANSPORT__TYPE": "console"})
    assert not is_configured({"OPENLINEAGE_URL": "http://127.0.0.1:1", "OPENLINEAGE_DISABLED": "True"})
    (tmp_path / "openlineage.yml").write_text("transport: {type: console}")
    assert is_configured({})
