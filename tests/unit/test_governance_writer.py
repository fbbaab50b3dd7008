"""A bundle is written so that what is left of it after any death is honest, and can be gone on with."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from bundle_maker import ABOUT, codes, edit_lines, entries, found, make_bundle, signed_statement
from killed_bundles import ENTRIES, EVERY

from tao_flows.errors import BundleError, InputError
from tao_flows.governance.chain import MOST_LINE_BYTES
from tao_flows.governance.keys import SigningKey, new_keys
from tao_flows.governance.layout import ATTESTATION, CHECKPOINTS, DECISIONS
from tao_flows.governance.verify import verify
from tao_flows.governance.writer import BundleWriter

FAKES = Path(__file__).parents[1] / "fakes"


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (path / DECISIONS).read_bytes().splitlines()]


def whole_lines(path: Path) -> list[dict[str, Any]]:
    log = path / DECISIONS
    return [json.loads(line) for line in log.read_bytes().split(b"\n")[:-1]] if log.exists() else []


def test_a_bundle_holds_its_entries_its_documents_and_one_statement_over_all(tmp_path: Path, key: SigningKey) -> None:
    with BundleWriter(tmp_path / "not" / "yet", "run%2F1", key, checkpoint_every=2) as writer:
        for entry in entries(5):
            writer.append(entry)
        with writer.write("run.json") as file, io.TextIOWrapper(file, encoding="utf-8") as text:
            text.write('{"name":"ä"}')
        sealed = writer.seal(ABOUT)
    assert sealed.path == writer.path == tmp_path / "not/yet/run%2F1"
    assert sorted(os.listdir(sealed.path)) == [ATTESTATION, CHECKPOINTS, DECISIONS, "run.json"]
    assert os.listdir(sealed.path.parent) == ["run%2F1"]
    assert [line["entry"] for line in lines_of(sealed.path)] == entries(5)
    assert [line["seq"] for line in lines_of(sealed.path)] == [1, 2, 3, 4, 5]
    assert len((sealed.path / CHECKPOINTS).read_bytes().splitlines()) == 3
    assert sealed.digest == hashlib.sha256((sealed.path / ATTESTATION).read_bytes()).hexdigest()
    assert (sealed.head.size, sealed.head.head) == (5, lines_of(sealed.path)[-1]["hash"])
    assert (sealed.revision, sealed.keyid) == (1, key.keyid)
    predicate = signed_statement(sealed.path)["predicate"]
    own = {"bundle": "run%2F1", "revision": 1, "keyid": key.keyid, "previous": None, "begun_anew": ""}
    assert predicate == {**ABOUT, **own, "chain": sealed.head.to_json()}
    assert found(sealed.path, key) == []


def test_a_run_without_decisions_has_a_bundle_too(tmp_path: Path, key: SigningKey) -> None:
    assert found(make_bundle(tmp_path, key, count=0, documents={}), key) == []


def test_a_run_of_which_parts_are_lost_is_ok_and_not_complete(tmp_path: Path, key: SigningKey) -> None:
    with BundleWriter(tmp_path, "run-1", key) as writer:
        writer.seal({**ABOUT, "complete": False, "lost": ["train"]})
    assert verify(writer.path, [key.public]).to_json() == {"ok": True, "complete": False, "failures": []}


def test_a_document_takes_its_place_only_once_it_is_whole(tmp_path: Path, key: SigningKey) -> None:
    with BundleWriter(tmp_path, "run-1", key) as writer:
        with writer.write("run.json") as file:
            file.write(b"first")
            assert not (writer.path / "run.json").exists()
        with suppress(ZeroDivisionError), writer.write("run.json") as file:
            file.write(b"second")
            raise ZeroDivisionError
        assert sorted(os.listdir(writer.path)) == [CHECKPOINTS, DECISIONS, "run.json"]
        assert (writer.path / "run.json").read_bytes() == b"first"
        with writer.write("run.json") as file:
            file.write(b"third")
        writer.seal(ABOUT)
    assert (writer.path / "run.json").read_bytes() == b"third"
    assert found(writer.path, key) == []


def test_what_is_changed_on_disk_before_the_seal_is_not_signed(tmp_path: Path, key: SigningKey) -> None:
    with BundleWriter(tmp_path, "run-1", key, checkpoint_every=2) as writer:
        for entry in entries(4):
            writer.append(entry)
        with writer.write("run.json") as file:
            file.write(b"{}")
        (writer.path / "run.json").write_bytes(b"[]")
        (writer.path / "planted.json").write_bytes(b"{}")
        edit_lines(writer.path / DECISIONS, lambda lines: lines[:1])
        writer.seal(ABOUT)
    told = found(writer.path, key)
    assert {f"DIGEST_MISMATCH {DECISIONS}", "DIGEST_MISMATCH run.json", "FILE_UNLISTED planted.json"} < set(told)


@pytest.mark.parametrize(
    "name", ["../up.json", "/abs", "a/b", "", ".", ".hidden", "é.json", "a" * 101, DECISIONS, CHECKPOINTS, ATTESTATION]
)
def test_a_document_has_a_plain_name(tmp_path: Path, key: SigningKey, name: str) -> None:
    with (
        BundleWriter(tmp_path, "run-1", key) as writer,
        pytest.raises(InputError, match="BAD_FILE_NAME"),
        writer.write(name),
    ):
        pass


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\0b", "ü", "a" * 201, "run.r2", "run.zip", "run\n"])
def test_a_bundle_has_a_plain_name(tmp_path: Path, key: SigningKey, name: str) -> None:
    with pytest.raises(InputError, match="BAD_BUNDLE_NAME"):
        BundleWriter(tmp_path, name, key)
    assert os.listdir(tmp_path) == []


def test_an_entry_that_cannot_be_kept_leaves_the_log_as_it_was(tmp_path: Path, key: SigningKey) -> None:
    with BundleWriter(tmp_path, "run-1", key) as writer:
        writer.append({"number": 1})
        for entry, code in (({"at": 2**60}, "NOT_STRICT_JSON"), ({"text": "x" * MOST_LINE_BYTES}, "ENTRY_TOO_LARGE")):
            with pytest.raises(InputError, match=code):
                writer.append(entry)
        writer.append({"number": 2})
        writer.seal(ABOUT)
    assert [line["entry"]["number"] for line in lines_of(writer.path)] == [1, 2]
    assert found(writer.path, key) == []


@pytest.mark.parametrize(
    "predicate",
    [
        {},
        {"complete": 1, "signer": "seal"},
        {"complete": True, "signer": "x"},
        {**ABOUT, "keyid": "0"},
        {**ABOUT, "at": 2**60},
    ],
)
def test_a_predicate_that_no_reader_would_take_is_not_signed(
    tmp_path: Path, key: SigningKey, predicate: dict[str, Any]
) -> None:
    with BundleWriter(tmp_path, "run-1", key) as writer:
        with pytest.raises(InputError):
            writer.seal(predicate)
        writer.seal(ABOUT)
    assert found(writer.path, key) == []


def test_a_second_writer_is_kept_away_until_the_first_has_closed(tmp_path: Path, key: SigningKey) -> None:
    with BundleWriter(tmp_path, "run-1", key):
        with pytest.raises(BundleError, match="BUNDLE_BUSY"):
            BundleWriter(tmp_path, "run-1", key)
        BundleWriter(tmp_path, "run-2", key).close()
    BundleWriter(tmp_path, "run-1", key).close()


def test_many_writers_at_once_take_turns_and_lose_nothing(tmp_path: Path, key: SigningKey) -> None:
    def add_ten() -> None:
        done = 0
        while done < 10:
            try:
                with BundleWriter(tmp_path, "run-1", key) as writer:
                    writer.append({"number": writer.head.size + 1})
                    writer.checkpoint()
                    done += 1
            except BundleError as error:
                assert error.code == "BUNDLE_BUSY"  # noqa: PT017 - the other errors are what the test is about

    threads = [threading.Thread(target=add_ten) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [line["entry"]["number"] for line in lines_of(tmp_path / "run-1")] == list(range(1, 41))
    assert codes(verify(tmp_path / "run-1", [key.public])) == ["INCOMPLETE"]


def test_the_next_writer_goes_on_from_what_is_signed_and_drops_the_rest(tmp_path: Path, key: SigningKey) -> None:
    path = make_bundle(tmp_path, key, sealed=False)
    with (path / DECISIONS).open("ab") as file:
        file.write(b'{"entry":{"action":"de')
    with (path / CHECKPOINTS).open("ab") as file:
        file.write(b'{"payload":"')
    (path / ".energy.json.part").write_bytes(b"{")
    with BundleWriter(tmp_path, "run-1", key, checkpoint_every=2) as writer:
        assert (writer.path, writer.revision, writer.head.size, writer.begun_anew) == (path, 1, 4, "")
        assert sorted(os.listdir(path)) == [CHECKPOINTS, DECISIONS]
        assert codes(verify(path, [key.public])) == ["INCOMPLETE"]
        for entry in entries(7)[writer.head.size :]:
            writer.append(entry)
        writer.seal(ABOUT)
    assert [line["entry"] for line in lines_of(path)] == entries(7)
    assert found(path, key) == []


def test_without_a_key_every_whole_line_is_gone_on_from(tmp_path: Path) -> None:
    path = make_bundle(tmp_path, None, sealed=False)
    with (path / DECISIONS).open("ab") as file:
        file.write(b'{"entry"')
    with BundleWriter(tmp_path, "run-1", None) as writer:
        assert (writer.revision, writer.head.size) == (1, 5)
        sealed = writer.seal(ABOUT)
    assert (sealed.keyid, found(path)) == (None, [f"UNSIGNED {ATTESTATION}"])


def test_a_closed_bundle_gets_a_revision_that_names_it(tmp_path: Path, key: SigningKey) -> None:
    first = make_bundle(tmp_path, key)
    second = make_bundle(tmp_path, key, count=6)
    assert (first.name, second.name) == ("run-1", "run-1.r2")
    predicate = signed_statement(second)["predicate"]
    assert predicate["previous"] == hashlib.sha256((first / ATTESTATION).read_bytes()).hexdigest()
    assert (predicate["bundle"], predicate["revision"], predicate["begun_anew"]) == ("run-1", 2, "")
    assert found(first, key) == found(second, key) == []


def break_line(path: Path) -> None:
    edit_lines(path / DECISIONS, lambda lines: [lines[0].replace(b"run", b"den"), *lines[1:]])


def cut_log(path: Path) -> None:
    edit_lines(path / DECISIONS, lambda lines: lines[:3])


def plant_link(path: Path) -> None:
    (path / "run.json").unlink()
    (path / "run.json").symlink_to("/etc/hostname")


def break_checkpoint(path: Path) -> None:
    edit_lines(path / CHECKPOINTS, lambda lines: [lines[0], lines[0], *lines[1:]])


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (break_line, "CHAIN_HASH"), (cut_log, "CHAIN_TRUNCATED"), (break_checkpoint, "CHECKPOINT_MISMATCH"), (plant_link, "NOT_A_FILE"),
        (lambda path: (path / "folder").mkdir(), "NOT_A_FILE"), (lambda path: (path / "a b").touch(), "BAD_NAME"),
        (lambda path: ((path / DECISIONS).unlink(), os.mkfifo(path / DECISIONS)), "NOT_A_FILE"),
    ],
)  # fmt: skip
def test_what_does_not_hold_is_left_as_it_is_and_begun_anew(
    tmp_path: Path, key: SigningKey, damage: Any, code: str
) -> None:
    first = make_bundle(tmp_path, key, sealed=False)
    damage(first)
    before = sorted(os.listdir(first))
    with BundleWriter(tmp_path, "run-1", key, checkpoint_every=2) as writer:
        assert (writer.revision, writer.head.size, writer.previous) == (2, 0, None)
        assert f"revision 1 cannot be gone on with: {code}" in writer.begun_anew
    assert DECISIONS in before
    assert (first / DECISIONS).exists()
    with BundleWriter(tmp_path, "run-1", key) as writer:
        assert (writer.revision, writer.begun_anew) == (2, "revision 1 was left without an attestation")
        writer.seal(ABOUT)
    assert found(tmp_path / "run-1.r2", key) == []


def test_a_bundle_begun_with_another_key_is_begun_anew(tmp_path: Path, key: SigningKey) -> None:
    make_bundle(tmp_path, SigningKey.generate(), sealed=False)
    with BundleWriter(tmp_path, "run-1", key) as writer:
        assert writer.revision == 2
        assert "KEY_UNKNOWN" in writer.begun_anew


def test_a_link_in_place_of_a_bundle_is_not_followed(tmp_path: Path, key: SigningKey) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "bundles").mkdir()
    (tmp_path / "bundles" / "run-1").symlink_to(tmp_path / "elsewhere")
    assert make_bundle(tmp_path / "bundles", key).name == "run-1.r2"
    assert os.listdir(tmp_path / "elsewhere") == []


def test_a_writer_that_cannot_write_is_closed_and_another_goes_on(
    tmp_path: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    writer = BundleWriter(tmp_path, "run-1", key, checkpoint_every=2)
    for entry in entries(3):
        writer.append(entry)
    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="No space left"):
            writer.append({"number": 4})
    for call in (lambda: writer.append({}), writer.checkpoint, lambda: writer.seal(ABOUT)):
        with pytest.raises(BundleError, match="BUNDLE_CLOSED"):
            call()
    with BundleWriter(tmp_path, "run-1", key) as other:
        assert (other.revision, other.head.size) == (1, 2)


@pytest.mark.slow
def test_killed_at_any_moment_a_writer_leaves_an_unfinished_bundle_that_holds_or_the_finished_one(
    tmp_path: Path,
) -> None:
    key = new_keys(tmp_path / "keys")
    root, count = tmp_path / "bundles", 200
    environment = {**os.environ, "PYTHONPATH": str(FAKES)}
    writer = [sys.executable, FAKES / "killed_bundles.py", root, tmp_path / "keys/signing.key", str(count), "1"]
    subprocess.run(writer, check=True, env=environment, timeout=240)
    unfinished = 0
    for path in (root / f"run-{number}" for number in range(count)):
        if not path.exists():
            continue  # killed before it had begun
        verdict = verify(path, [key.public])
        if verdict.ok:
            assert verdict.proven.size == ENTRIES
            continue
        unfinished += 1
        assert codes(verdict) == ["INCOMPLETE"]
        checkpoints = path / CHECKPOINTS
        signed = checkpoints.read_bytes().count(b"\n") if checkpoints.exists() else 0
        assert verdict.proven.size == min(signed * EVERY, ENTRIES)
        assert [line["entry"] for line in whole_lines(path)[: verdict.proven.size]] == entries(ENTRIES)[
            : verdict.proven.size
        ]
        if unfinished % 10 == 0:
            assert make_bundle_from(root, path.name, key) == path
            assert found(path, key) == []
    assert unfinished > count / 5


def make_bundle_from(root: Path, name: str, key: SigningKey) -> Path:
    with BundleWriter(root, name, key) as writer:
        for entry in entries(ENTRIES)[writer.head.size :]:
            writer.append(entry)
        return writer.seal(ABOUT).path
