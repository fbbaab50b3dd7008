"""What is done to a bundle is found and named; what was never closed is said to be so, and nothing else."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bundle_maker import (
    codes,
    edit_lines,
    entries,
    found,
    line_of,
    make_bundle,
    sign_anew,
    sign_files_anew,
    signed_statement,
)  # fmt: skip

from tao_flows.errors import InputError
from tao_flows.governance.chain import Chain, Head
from tao_flows.governance.failures import FAILURES
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.layout import ATTESTATION, CHECKPOINTS, DECISIONS, MOST_FILES
from tao_flows.governance.verify import verify

UNCLOSED = [f"INCOMPLETE {ATTESTATION}"]
LOG_CHANGED = f"DIGEST_MISMATCH {DECISIONS}"


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def bundle(tmp_path: Path, key: SigningKey) -> Path:
    return make_bundle(tmp_path, key)


@pytest.fixture
def unclosed(tmp_path: Path, key: SigningKey) -> Path:
    """Five lines, of which a checkpoint signed four."""
    path = make_bundle(tmp_path, key, "run-2")
    (path / ATTESTATION).unlink()
    edit_lines(path / CHECKPOINTS, lambda lines: lines[:-1])
    return path


def test_the_codes_of_failures_are_a_contract() -> None:
    assert list(FAILURES) == [
        "ANCHOR_ABSENT", "ANCHOR_MISMATCH", "ARCHIVE_BOMB", "ARCHIVE_MALFORMED", "BAD_NAME", "CHAIN_HASH", "CHAIN_HEAD",
        "CHAIN_LENGTH", "CHAIN_MALFORMED", "CHAIN_ORDER", "CHAIN_PREVIOUS", "CHAIN_TRUNCATED", "CHECKPOINT_MALFORMED",
        "CHECKPOINT_MISMATCH", "DIGEST_MISMATCH", "DUPLICATE_FILE", "ENVELOPE_MALFORMED", "FILE_MISSING", "FILE_UNLISTED",
        "INCOMPLETE", "KEY_UNKNOWN", "NOT_A_FILE", "PAYLOAD_TYPE", "SIGNATURE_INVALID", "STATEMENT_MALFORMED",
        "STATEMENT_TYPE", "SYMLINK", "TOO_LARGE", "TOO_MANY_FILES", "UNREADABLE_FILE", "UNSIGNED",
    ]  # fmt: skip
    assert all(len(summary) > 20 for summary in FAILURES.values())


def test_a_bundle_that_is_as_it_was_signed_is_ok(bundle: Path, key: SigningKey) -> None:
    verdict = verify(bundle, [SigningKey.generate().public, key.public])
    assert verdict.to_json() == {"ok": True, "complete": True, "failures": []}
    assert verdict.statement is not None
    assert (verdict.statement.bundle, verdict.statement.revision, verdict.statement.signer) == ("run-1", 1, "seal")
    assert verdict.statement.files.keys() == {DECISIONS, CHECKPOINTS, "run.json", "energy.json"}
    assert verdict.proven == verdict.seen == verdict.statement.chain
    assert verdict.proven.size == 5


def test_every_byte_that_is_flipped_is_found_and_named(tmp_path: Path, key: SigningKey) -> None:
    path = make_bundle(tmp_path, key, count=3, documents={"run.json": b'{"run":1}'})
    generator = random.Random(7)
    keys = [key.public]
    for name in sorted(os.listdir(path)):
        content = (path / name).read_bytes()
        for position, byte in enumerate(content):
            flipped = bytes([byte ^ generator.randrange(1, 256)])
            (path / name).write_bytes(content[:position] + flipped + content[position + 1 :])
            verdict = verify(path, keys)
            line = content.count(b"\n", 0, position) + 1
            if name == ATTESTATION:
                assert codes(verdict, name), position
            else:
                assert "DIGEST_MISMATCH" in codes(verdict, name), position
            if name in {DECISIONS, CHECKPOINTS}:
                assert line in {failure.line for failure in verdict.failures if failure.file == name}, position
            assert not verdict.ok
        (path / name).write_bytes(content)
    assert verify(path, keys).ok


Edit = Callable[[list[bytes]], list[bytes]]


def rewritten(lines: list[bytes], count: int) -> list[bytes]:
    """Other entries, in a chain without a flaw."""
    chain = Chain()
    return [chain.link({**entry, "action": "deny"}) for entry in entries(count)]


@pytest.mark.parametrize(
    ("edit", "code"),
    [
        (lambda lines: lines[:1] + lines[2:], "CHAIN_ORDER:2"),
        (lambda lines: lines[1:], "CHAIN_ORDER:1"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], "CHAIN_ORDER:3"),
        (lambda lines: [*lines[:1], Chain().link({"action": "deny"}), *lines[1:]], "CHAIN_ORDER:2"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "CHAIN_ORDER:2"),
        (lambda lines: [lines[0].replace(b"run", b"den"), *lines[1:]], "CHAIN_HASH:1"),
        (lambda lines: [*rewritten(lines, 1), *lines[1:]], "CHAIN_PREVIOUS:2"),
        (lambda lines: lines[:4], "CHAIN_TRUNCATED:5"),
        (lambda lines: [*lines[:4], lines[4][:-1]], "CHAIN_MALFORMED:5"),
        (lambda lines: [*lines[:4], lines[4][:-30]], "CHAIN_MALFORMED:5"),
        (lambda lines: [*lines, b"\n"], "CHAIN_MALFORMED:6"),
        (lambda lines: [*lines, lines[4]], "CHAIN_ORDER:6"),
        (lambda lines: [b"", *[b"null\n"] * 3], "CHAIN_MALFORMED:1"),
    ],
)  # fmt: skip
def test_a_log_that_was_edited_breaks_at_its_line(bundle: Path, key: SigningKey, edit: Edit, code: str) -> None:
    edit_lines(bundle / DECISIONS, edit)
    code, _, line = code.partition(":")
    assert found(bundle, key) == [f"{code} {DECISIONS}:{line}", LOG_CHANGED]


def test_a_log_that_was_written_anew_contradicts_its_checkpoints_and_its_attestation(
    bundle: Path, key: SigningKey
) -> None:
    edit_lines(bundle / DECISIONS, lambda lines: rewritten(lines, 5))
    assert found(bundle, key) == [f"CHECKPOINT_MISMATCH {CHECKPOINTS}:1", LOG_CHANGED]
    (bundle / CHECKPOINTS).write_bytes(b"")
    assert found(bundle, key) == [f"CHAIN_HEAD {DECISIONS}:5", f"DIGEST_MISMATCH {CHECKPOINTS}", LOG_CHANGED]
    edit_lines(bundle / DECISIONS, lambda lines: rewritten(lines, 6))
    assert f"CHAIN_LENGTH {DECISIONS}:6" in found(bundle, key)
    (bundle / DECISIONS).write_bytes(b"")
    assert f"CHAIN_TRUNCATED {DECISIONS}:1" in found(bundle, key)


def test_a_tail_that_is_cut_off_with_the_checkpoints_over_it_is_missed(bundle: Path, key: SigningKey) -> None:
    edit_lines(bundle / DECISIONS, lambda lines: lines[:2])
    edit_lines(bundle / CHECKPOINTS, lambda lines: lines[:1])
    assert found(bundle, key) == [f"CHAIN_TRUNCATED {DECISIONS}:3", f"DIGEST_MISMATCH {CHECKPOINTS}", LOG_CHANGED]
    (bundle / ATTESTATION).unlink()
    assert found(bundle, key) == UNCLOSED  # never ok; and only a head held elsewhere knows that there was more


MALFORMED = [
    b'{"entry":{"action":"deny"},"entry":{"action":"run"}', b'{"entry":{"action":"deny","action":"run"}', b'{"entry":{"b":1,"a":2}',
    b'{"entry":{"a": 1}', b'{"entry": {"a":1}', b'{"entry":{"a":1.0}', b'{"entry":{"a":NaN}', b'{"entry":{"a":1},"extra":1', b'{"entry":[]',
    b'{"entry":null', b'{"entry":{"a":"\\u0041"}', b'{"entry":{"a":"\xff"}', b'{"entry":{"a":1}}', b'{"entry":{"a":9007199254740993}',
    b'{"entry":{"a":1},"hash":"' + b"0" * 64 + b'"', b'{"entry":{"a":' + b"[" * 70 + b"]" * 70 + b"}", b'{"entry":',
]  # fmt: skip


@pytest.mark.parametrize("body", MALFORMED)
def test_a_malformed_line_is_refused_though_its_hash_is_right(unclosed: Path, key: SigningKey, body: bytes) -> None:
    last = json.loads((unclosed / DECISIONS).read_bytes().splitlines()[4])
    edit_lines(unclosed / DECISIONS, lambda lines: [*lines, line_of(body, Head(5, last["hash"]))])
    assert found(unclosed, key) == [*UNCLOSED, f"CHAIN_MALFORMED {DECISIONS}:6"]


def test_the_line_that_is_made_for_that_is_accepted_when_it_is_well_formed(unclosed: Path, key: SigningKey) -> None:
    last = json.loads((unclosed / DECISIONS).read_bytes().splitlines()[4])
    edit_lines(unclosed / DECISIONS, lambda lines: [*lines, line_of(b'{"entry":{"a":1}', Head(5, last["hash"]))])
    verdict = verify(unclosed, [key.public])
    assert codes(verdict) == ["INCOMPLETE"]
    assert (verdict.proven.size, verdict.seen.size) == (4, 6)


def test_an_unfinished_bundle_is_incomplete_and_nothing_else(unclosed: Path, key: SigningKey) -> None:
    verdict = verify(unclosed, [key.public])
    assert verdict.to_json() == {
        "ok": False,
        "complete": False,
        "failures": [{"code": "INCOMPLETE", "file": ATTESTATION}],
    }
    assert (verdict.proven.size, verdict.seen.size) == (4, 5)
    edit_lines(unclosed / DECISIONS, lambda lines: [*lines[:4], lines[4][:50]])  # its writer died over the last line
    with (unclosed / CHECKPOINTS).open("ab") as file:
        file.write(b'{"payload":"')
    (unclosed / ".energy.json.part").write_bytes(b"{")
    assert found(unclosed, key) == UNCLOSED
    for name in os.listdir(unclosed):
        (unclosed / name).unlink()
        assert verify(unclosed, [key.public]).complete is False
    assert found(unclosed, key) == UNCLOSED


def test_what_a_checkpoint_signed_of_an_unfinished_bundle_is_checked(unclosed: Path, key: SigningKey) -> None:
    kept = (unclosed / DECISIONS).read_bytes()
    for edit, code in (
        (lambda lines: lines[:3], f"CHAIN_TRUNCATED {DECISIONS}:4"),
        (lambda lines: [*lines[:3], lines[3][:-1]], f"CHAIN_TRUNCATED {DECISIONS}:4"),
        (lambda lines: rewritten(lines, 5), f"CHECKPOINT_MISMATCH {CHECKPOINTS}:1"),
        (lambda lines: [*lines[:4], lines[4].replace(b"run", b"den")], f"CHAIN_HASH {DECISIONS}:5"),
    ):
        edit_lines(unclosed / DECISIONS, edit)
        assert found(unclosed, key) == [*UNCLOSED, code]
        (unclosed / DECISIONS).write_bytes(kept)
    (unclosed / DECISIONS).unlink()
    assert found(unclosed, key) == [*UNCLOSED, f"CHAIN_TRUNCATED {DECISIONS}:1"]


def test_checkpoints_of_another_bundle_order_or_key_are_refused(
    unclosed: Path, bundle: Path, tmp_path: Path, key: SigningKey
) -> None:
    other = make_bundle(tmp_path, key, "run-3", sealed=False)
    forged = make_bundle(tmp_path, SigningKey.generate(), "run-4", sealed=False)
    own = (unclosed / CHECKPOINTS).read_bytes()
    lines = own.splitlines(keepends=True)
    for content, code in (
        (lines[1] + lines[0], f"CHECKPOINT_MISMATCH {CHECKPOINTS}:2"),
        (own + lines[1], f"CHECKPOINT_MISMATCH {CHECKPOINTS}:3"),
        (lines[0] + (other / CHECKPOINTS).read_bytes(), f"CHECKPOINT_MISMATCH {CHECKPOINTS}:2"),
        ((forged / CHECKPOINTS).read_bytes(), f"KEY_UNKNOWN {CHECKPOINTS}:1"),
        (own + b"{}\n", f"ENVELOPE_MALFORMED {CHECKPOINTS}:3"),
        (own + (bundle / ATTESTATION).read_bytes() + b"\n", f"PAYLOAD_TYPE {CHECKPOINTS}:3"),
    ):
        (unclosed / CHECKPOINTS).write_bytes(content)
        assert found(unclosed, key) == [*UNCLOSED, code]


def test_files_that_were_swapped_added_or_taken_away_are_named(bundle: Path, tmp_path: Path, key: SigningKey) -> None:
    other = make_bundle(tmp_path, key, "run-2", documents={"run.json": b"{}", "energy.json": b"[]"}, count=3)
    own = {name: (bundle / name).read_bytes() for name in os.listdir(bundle)}
    for name in sorted(own):
        shutil.copy(other / name, bundle / name)
        told = found(bundle, key)
        assert f"DIGEST_MISMATCH {DECISIONS if name == ATTESTATION else name}" in told
        (bundle / name).unlink()
        assert (UNCLOSED[0] if name == ATTESTATION else f"FILE_MISSING {name}") in found(bundle, key)
        (bundle / name).write_bytes(own[name])
    (bundle / "notes.txt").write_bytes(b"")
    (bundle / ".run.json.part").write_bytes(b"")
    assert found(bundle, key) == ["FILE_UNLISTED .run.json.part", "FILE_UNLISTED notes.txt"]


def test_a_forged_key_or_a_signature_taken_away_is_found(bundle: Path, key: SigningKey) -> None:
    thief = SigningKey.generate()
    statement = signed_statement(bundle)
    sign_anew(bundle, thief, statement)
    assert found(bundle, key) == [f"KEY_UNKNOWN {ATTESTATION}"]
    envelope = json.loads((bundle / ATTESTATION).read_bytes())
    envelope["signatures"][0]["keyid"] = key.keyid
    (bundle / ATTESTATION).write_bytes(json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode())
    assert found(bundle, key) == [f"SIGNATURE_INVALID {ATTESTATION}"]
    envelope["signatures"] = []
    (bundle / ATTESTATION).write_bytes(json.dumps(envelope, separators=(",", ":"), sort_keys=True).encode())
    verdict = verify(bundle, [key.public])
    assert (codes(verdict), verdict.complete, verdict.statement) == (["UNSIGNED"], False, None)
    sign_anew(bundle, key, {**statement, "predicate": {**statement["predicate"], "keyid": thief.keyid}})
    assert found(bundle, key) == [f"KEY_UNKNOWN {ATTESTATION}"]


def test_a_bundle_without_a_key_is_unsigned_and_still_compared(tmp_path: Path, key: SigningKey) -> None:
    path = make_bundle(tmp_path, None)
    assert found(path, key) == found(path) == [f"UNSIGNED {ATTESTATION}"]
    (path / "run.json").write_bytes(b"{}")
    assert found(path, key) == [f"UNSIGNED {ATTESTATION}", "DIGEST_MISMATCH run.json"]


def test_what_an_insider_signs_anew_is_ok_until_a_head_is_held_elsewhere(bundle: Path, key: SigningKey) -> None:
    edit_lines(bundle / DECISIONS, lambda lines: rewritten(lines, 5))
    (bundle / CHECKPOINTS).write_bytes(b"")
    sign_files_anew(bundle, key)
    assert found(bundle, key) == []


SUBJECT = {"name": "run.json", "digest": {"sha256": "0" * 64}}


@pytest.mark.parametrize(
    ("path", "value", "code"),
    [
        *[(("subject", 0, "name"), name, "BAD_NAME") for name in (
            "../run.json", "/etc/passwd", "a/b", "a\\b", "..", ".", "", "a\0b", "ä.json", "-a", ".hidden", "a" * 101, "a\n", ATTESTATION,
        )],
        (("subject", 0), {**SUBJECT, "name": "energy.json"}, "DUPLICATE_FILE"),
        (("subject",), [], "STATEMENT_MALFORMED"), (("subject",), {}, "STATEMENT_MALFORMED"),
        (("subject",), [{**SUBJECT, "name": f"f{number}"} for number in range(MOST_FILES)], "STATEMENT_MALFORMED"),
        (("subject", 0, "digest"), {"sha256": "0" * 63}, "STATEMENT_MALFORMED"),
        (("subject", 0, "digest"), {"sha256": "A" * 64}, "STATEMENT_MALFORMED"),
        (("subject", 0, "digest"), {"sha512": "0" * 64}, "STATEMENT_MALFORMED"),
        (("subject", 0, "name"), None, "STATEMENT_MALFORMED"), (("subject", 0), None, "STATEMENT_MALFORMED"),
        (("_type",), "https://in-toto.io/Statement/v2", "STATEMENT_TYPE"),
        (("predicateType",), "urn:tao-flows:bundle:2", "STATEMENT_TYPE"),
        (("more",), 1, "STATEMENT_MALFORMED"), (("predicate",), None, "STATEMENT_MALFORMED"), (("predicate",), {}, "STATEMENT_MALFORMED"),
        (("predicate", "revision"), True, "STATEMENT_MALFORMED"), (("predicate", "revision"), 0, "STATEMENT_MALFORMED"),
        (("predicate", "revision"), 1.5, "STATEMENT_MALFORMED"), (("predicate", "chain", "size"), -1, "STATEMENT_MALFORMED"),
        (("predicate", "chain", "size"), 1e20, "STATEMENT_MALFORMED"), (("predicate", "chain", "head"), "0", "STATEMENT_MALFORMED"),
        (("predicate", "chain"), None, "STATEMENT_MALFORMED"), (("predicate", "complete"), "yes", "STATEMENT_MALFORMED"),
        (("predicate", "signer"), "nobody", "STATEMENT_MALFORMED"), (("predicate", "signer"), [], "STATEMENT_MALFORMED"),
        (("predicate", "keyid"), 1, "STATEMENT_MALFORMED"), (("predicate", "previous"), "", "STATEMENT_MALFORMED"),
        (("predicate", "bundle"), None, "STATEMENT_MALFORMED"), (("predicate", "begun_anew"), None, "STATEMENT_MALFORMED"),
    ],
)  # fmt: skip
def test_a_statement_that_says_nonsense_is_refused_though_it_is_signed(
    bundle: Path, key: SigningKey, path: tuple[Any, ...], value: Any, code: str
) -> None:
    statement = signed_statement(bundle)
    place = statement
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    sign_anew(bundle, key, statement)
    assert found(bundle, key) == [f"{code} {ATTESTATION}"]


def test_a_statement_that_is_no_object_is_refused_though_it_is_signed(bundle: Path, key: SigningKey) -> None:
    for value in (None, [], "text", 1.5, {}):
        sign_anew(bundle, key, value)
        assert found(bundle, key) == [f"STATEMENT_MALFORMED {ATTESTATION}"]


def test_links_folders_pipes_and_sockets_are_named_and_never_followed_or_waited_for(
    bundle: Path, tmp_path: Path, key: SigningKey
) -> None:
    own = {name: (bundle / name).read_bytes() for name in os.listdir(bundle)}
    for name in sorted(own):
        (bundle / name).rename(tmp_path / "same")
        for make, code in (
            (lambda path: path.symlink_to(tmp_path / "same"), "SYMLINK"),
            (lambda path: path.symlink_to(tmp_path), "SYMLINK"),
            (lambda path: path.symlink_to("/dev/zero"), "SYMLINK"),
            (lambda path: path.mkdir(), "NOT_A_FILE"),
            (os.mkfifo, "NOT_A_FILE"),
            (bind_socket, "NOT_A_FILE"),
        ):
            make(bundle / name)
            assert f"{code} {name}" in found(bundle, key)
            if (bundle / name).is_dir() and not (bundle / name).is_symlink():
                (bundle / name).rmdir()
            else:
                (bundle / name).unlink()
        (bundle / name).write_bytes(own[name])
    (bundle / "folder").mkdir()
    (bundle / "folder" / "run.json").write_bytes(b"{}")
    (bundle / "link").symlink_to("folder")
    assert found(bundle, key) == ["NOT_A_FILE folder", "SYMLINK link"]


def bind_socket(path: Path) -> None:
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may be no longer than a hundred signs
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)
    os.chdir(here)


def test_odd_names_are_shown_harmlessly(bundle: Path, key: SigningKey) -> None:
    for name in (b"a b", b"\x1b[31mred", b"\xff\xfe", b".hidden", "ä".encode(), b"-rf", b"x" * 200, b"new\nline"):
        (bundle / os.fsdecode(name)).write_bytes(b"")
    verdict = verify(bundle, [key.public])
    assert codes(verdict) == ["BAD_NAME"] * 8
    assert all(failure.file.isascii() and failure.file.isprintable() for failure in verdict.failures)


def test_a_directory_of_anything_else_is_told_apart_at_once(tmp_path: Path, key: SigningKey) -> None:
    for number in range(MOST_FILES + 1):
        (tmp_path / f"f{number}").write_bytes(b"")
    assert found(tmp_path, key) == ["TOO_MANY_FILES ."]


def test_lines_and_files_of_any_length_take_no_memory(bundle: Path, key: SigningKey) -> None:
    for name in (DECISIONS, CHECKPOINTS, ATTESTATION, "run.json"):
        kept = (bundle / name).read_bytes()
        with (bundle / name).open("ab") as file:
            file.truncate(2**34)
        tracemalloc.start()
        assert f"TOO_LARGE {name}" in found(bundle, key)
        (bundle / name).write_bytes(b"\0" * 9 * 2**20)
        assert codes(verify(bundle, [key.public]), name)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 40 * 2**20
        (bundle / name).write_bytes(kept)
    assert found(bundle, key) == []


def test_a_long_log_is_read_within_bounded_memory(tmp_path: Path, key: SigningKey) -> None:
    path = make_bundle(tmp_path, key, count=0, sealed=False)
    chain = Chain()
    with (path / DECISIONS).open("wb") as file:
        file.writelines(chain.link({"number": number, "text": "x" * 2_000}) for number in range(6_000))
    tracemalloc.start()
    verdict = verify(path, [key.public])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert verdict.seen == chain.head
    assert peak < 4 * 2**20 < (path / DECISIONS).stat().st_size / 3


def test_a_file_that_cannot_be_read_is_named(bundle: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = os.open

    def refusing(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if path == "run.json":
            raise PermissionError(13, "Permission denied")  # root may read everything
        return opened(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", refusing)
    assert found(bundle, key) == ["UNREADABLE_FILE run.json"]


def test_only_what_cannot_be_read_at_all_is_an_error(tmp_path: Path, key: SigningKey) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "absent", tmp_path / "pipe", Path("/dev/zero"), Path("a\0b"), tmp_path / ("x" * 300)):
        with pytest.raises(InputError, match="UNREADABLE_FILE"):
            verify(path, [key.public])


def test_the_documentation_has_every_code_and_what_it_means() -> None:
    page = (Path(__file__).parents[2] / "docs/governance.md").read_text(encoding="utf-8")
    rows = [f"| `{code}` | {summary} |" for code, summary in FAILURES.items()]
    assert "\n".join(rows) in page
