"""Heads held elsewhere: what shows a bundle that was signed anew by whoever has the key."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_maker import codes, edit_lines, entries, make_bundle, sign_anew, sign_files_anew, signed_statement

from tao_flows.errors import BundleError, InputError
from tao_flows.governance.anchors import Anchor, add_anchors, read_anchors
from tao_flows.governance.chain import Chain
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.layout import ATTESTATION, CHECKPOINTS, DECISIONS
from tao_flows.governance.verify import anchor_of, verify


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def bundle(tmp_path: Path, key: SigningKey) -> Path:
    return make_bundle(tmp_path, key)


def anchor_for(bundle: Path, key: SigningKey) -> Anchor:
    verdict = verify(bundle, [key.public])
    anchor = anchor_of(verdict.statement, verdict.attestation, "2026-11-23T12:00:00Z")
    assert anchor is not None
    return anchor


def told(bundle: Path, key: SigningKey, anchors: Path) -> list[str]:
    return codes(verify(bundle, [key.public], read_anchors(anchors)))


def rewrite(bundle: Path) -> None:
    chain = Chain()
    edit_lines(bundle / DECISIONS, lambda _: [chain.link({**entry, "action": "deny"}) for entry in entries(5)])
    (bundle / CHECKPOINTS).write_bytes(b"")


def test_a_bundle_that_an_insider_signed_anew_contradicts_its_anchor(
    bundle: Path, tmp_path: Path, key: SigningKey
) -> None:
    anchors = tmp_path / "anchors.jsonl"
    assert add_anchors(anchors, [anchor_for(bundle, key)]) == [anchor_for(bundle, key)]
    assert told(bundle, key, anchors) == []
    rewrite(bundle)
    sign_files_anew(bundle, key)
    assert codes(verify(bundle, [key.public])) == []
    assert told(bundle, key, anchors) == ["ANCHOR_MISMATCH"]
    with pytest.raises(BundleError, match="ANCHOR_MISMATCH"):
        add_anchors(anchors, [anchor_for(bundle, key)])
    assert len(list(read_anchors(anchors))) == 1


def test_another_name_revision_or_an_attestation_taken_away_does_not_help(
    bundle: Path, tmp_path: Path, key: SigningKey
) -> None:
    anchors = tmp_path / "anchors.jsonl"
    add_anchors(anchors, [anchor_for(bundle, key)])
    statement = signed_statement(bundle)
    (bundle / CHECKPOINTS).write_bytes(b"")
    for change in ({"bundle": "run-9"}, {"revision": 2}):
        sign_anew(bundle, key, {**statement, "predicate": {**statement["predicate"], **change}})
        sign_files_anew(bundle, key)
        assert codes(verify(bundle, [key.public])) == []
        assert told(bundle, key, anchors) == ["ANCHOR_ABSENT"]
    (bundle / ATTESTATION).unlink()
    assert told(bundle, key, anchors) == ["INCOMPLETE", "ANCHOR_ABSENT"]


def test_an_anchor_of_any_other_attestation_contradicts(bundle: Path, key: SigningKey) -> None:
    own = anchor_for(bundle, key)
    for change in ({"size": 4}, {"head": "0" * 64}, {"attestation": "0" * 64}, {"keyid": "0" * 64}):
        for anchors in ([replace(own, **change)], [own, replace(own, **change)]):
            assert codes(verify(bundle, [key.public], anchors)) == ["ANCHOR_MISMATCH"]
    assert (
        codes(verify(bundle, [key.public], [own, replace(own, recorded="later"), replace(own, bundle="run-2")])) == []
    )
    assert codes(verify(bundle, [key.public], [])) == ["ANCHOR_ABSENT"]


def test_an_anchor_is_noted_once_whoever_notes_it(bundle: Path, tmp_path: Path, key: SigningKey) -> None:
    anchors, own = tmp_path / "anchors.jsonl", anchor_for(bundle, key)
    many = [replace(own, bundle=f"run-{number}") for number in range(20)]
    threads = [threading.Thread(target=add_anchors, args=(anchors, [one])) for one in many * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(anchor.bundle for anchor in read_anchors(anchors)) == sorted(anchor.bundle for anchor in many)
    assert add_anchors(anchors, [replace(own, recorded="later", bundle="run-3")]) == []
    with pytest.raises(BundleError, match="ANCHOR_MISMATCH"):
        add_anchors(anchors, [own, replace(own, size=1)])


def test_an_anchor_file_that_cannot_be_read_is_an_error_and_is_never_written_over(
    tmp_path: Path, bundle: Path, key: SigningKey
) -> None:
    anchors, own = tmp_path / "anchors.jsonl", anchor_for(bundle, key)
    add_anchors(anchors, [own])
    line = anchors.read_bytes()
    for content in (
        line[:-1],
        line[:-20],
        line + b"\n",
        line + line.replace(b'"size":5', b'"size":"5"'),
        b" " + line,
        b"x" * 9_000,
        line + b"{}\n",
    ):
        anchors.write_bytes(content)
        with pytest.raises(InputError, match="BAD_ANCHOR"):
            told(bundle, key, anchors)
        with pytest.raises(InputError, match="BAD_ANCHOR"):
            add_anchors(anchors, [replace(own, bundle="run-2")])
        assert anchors.read_bytes() == content
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="UNREADABLE_FILE"):
            list(read_anchors(path))
    for path in (tmp_path / "pipe", tmp_path, tmp_path / "absent" / "file"):
        with pytest.raises(InputError, match=r"UNWRITABLE_FILE|UNREADABLE_FILE"):
            add_anchors(path, [own])


def test_a_disk_that_is_full_leaves_no_half_a_line(
    tmp_path: Path, bundle: Path, key: SigningKey, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors, own = tmp_path / "anchors.jsonl", anchor_for(bundle, key)
    add_anchors(anchors, [own])
    before, write = anchors.read_bytes(), os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:9]))
    with pytest.raises(InputError, match="No space left on device"):
        add_anchors(anchors, [replace(own, bundle="run-2")])
    assert anchors.read_bytes() == before
