"""``tao-flows keys``, ``verify`` and ``anchor`` as a person runs them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundle_maker import edit_lines, make_bundle

from tao_flows.governance.keys import SigningKey
from tao_flows.governance.layout import CHECKPOINTS, DECISIONS

TAO_FLOWS = Path(sys.executable).with_name("tao-flows")


def tao_flows(*arguments: object) -> Any:
    return subprocess.run([TAO_FLOWS, *map(str, arguments)], capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("keys")
    done = tao_flows("keys", "new", "--out", path, "--json")
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert made == {
        "keyid": SigningKey.load(path / "signing.key").keyid,
        "signing_key": str(path / "signing.key"),
        "public_key": str(path / "signing.pub"),
    }
    return path


def test_keys_are_shown_by_either_half_and_never_written_over(keys: Path) -> None:
    keyid = SigningKey.load(keys / "signing.key").keyid
    for half in ("signing.key", "signing.pub"):
        assert tao_flows("keys", "show", keys / half).stdout == keyid + "\n"
    again = tao_flows("keys", "new", "--out", keys)
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr.count("\n") == 1
    assert "KEY_EXISTS" in again.stderr
    assert SigningKey.load(keys / "signing.key").keyid == keyid


def test_verify_says_ok_or_names_what_is_wrong(tmp_path: Path, keys: Path) -> None:
    path, public = make_bundle(tmp_path, SigningKey.load(keys / "signing.key")), keys / "signing.pub"
    done = tao_flows("verify", path, "--key", public, "--json")
    assert (done.returncode, json.loads(done.stdout)) == (0, {"ok": True, "complete": True, "failures": []})
    assert "ok: unchanged since it was signed, 5 lines of the log" in tao_flows("verify", path, "--key", public).stdout
    edit_lines(path / DECISIONS, lambda lines: [lines[0].replace(b"run", b"den"), *lines[1:]])
    done = tao_flows("verify", path, "--key", public, "--json")
    failures = [{"code": "CHAIN_HASH", "file": DECISIONS, "line": 1}, {"code": "DIGEST_MISMATCH", "file": DECISIONS}]
    assert (done.returncode, json.loads(done.stdout)) == (1, {"ok": False, "complete": True, "failures": failures})
    done = tao_flows("verify", path, "--key", public)
    assert done.returncode == 1
    assert "CHAIN_HASH           decisions.jsonl:1" in done.stdout
    assert "not ok: 0 lines of the log shown to be unchanged" in done.stdout


def test_verify_ends_with_2_only_if_something_given_cannot_be_read(tmp_path: Path, keys: Path) -> None:
    path, public = make_bundle(tmp_path, SigningKey.load(keys / "signing.key")), keys / "signing.pub"
    for arguments in (
        (tmp_path / "absent", "--key", public), (path, "--key", tmp_path / "absent"), (path, "--key", keys / "signing.key"),
        (path,), (path, "--key", public, "--anchor", tmp_path / "absent"), (path, "--key", public, "--anchor", public),
    ):  # fmt: skip
        done = tao_flows("verify", *arguments, "--json")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), arguments


def test_an_anchor_is_noted_of_what_verifies_and_tells_what_was_signed_anew(tmp_path: Path, keys: Path) -> None:
    key, public, anchors = SigningKey.load(keys / "signing.key"), keys / "signing.pub", tmp_path / "anchors.jsonl"
    first, second = make_bundle(tmp_path / "a", key), make_bundle(tmp_path / "a", key, "run-2")
    done = tao_flows("anchor", first, second, "--to", anchors, "--key", public, "--json")
    assert done.returncode == 0, done.stderr
    assert [anchor["bundle"] for anchor in json.loads(done.stdout)["added"]] == ["run-1", "run-2"]
    assert json.loads(tao_flows("anchor", first, "--to", anchors, "--key", public, "--json").stdout)["added"] == []
    done = tao_flows("verify", second, "--key", public, "--anchor", anchors, "--json")
    assert (done.returncode, json.loads(done.stdout)["ok"]) == (0, True)
    anew = make_bundle(tmp_path / "b", key, count=4)
    done = tao_flows("verify", anew, "--key", public, "--anchor", anchors, "--json")
    assert done.returncode == 1
    assert [failure["code"] for failure in json.loads(done.stdout)["failures"]] == ["ANCHOR_MISMATCH"]
    done = tao_flows("anchor", anew, "--to", anchors, "--key", public)
    assert (done.returncode, "ANCHOR_MISMATCH" in done.stderr) == (1, True)
    (first / CHECKPOINTS).write_bytes(b"")
    other = make_bundle(tmp_path / "a", key, "run-3")
    done = tao_flows("anchor", other, first, "--to", anchors, "--key", public, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["added"] == []
    assert list(json.loads(done.stdout)["refused"]) == [str(first)]
    assert len(anchors.read_bytes().splitlines()) == 2


def test_verifying_loads_no_engine_and_opens_no_connection(tmp_path: Path, keys: Path) -> None:
    path = make_bundle(tmp_path, SigningKey.load(keys / "signing.key"))
    program = """
import sys
from pathlib import Path
def watch(event, arguments):
    if event.startswith("socket."):
        raise SystemExit(f"{event} {arguments}")
sys.addaudithook(watch)
from tao_flows.governance.keys import VerifyKey
from tao_flows.governance.verify import verify
assert verify(Path(sys.argv[1]), [VerifyKey.load(Path(sys.argv[2]))]).ok
print(*sorted({name.partition(".")[0] for name in sys.modules} & {"airflow", "asyncio", "pandas", "prefect", "sqlalchemy", "yaml"}))
"""
    done = subprocess.run([sys.executable, "-c", program, path, keys / "signing.pub"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "\n", "")
