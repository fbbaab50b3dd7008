"""A bundle as one archive: the same verdict, and nothing that an archive can be made of does harm."""

from __future__ import annotations

import io
import os
import random
import stat
import struct
import threading
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from bundle_maker import ABOUT, codes, found, make_bundle

from tao_flows.errors import BundleError
from tao_flows.governance.archive import write_archive
from tao_flows.governance.keys import SigningKey
from tao_flows.governance.layout import ATTESTATION, DECISIONS, MOST_FILES
from tao_flows.governance.verify import verify
from tao_flows.governance.writer import BundleWriter

GIB = 2**30


@pytest.fixture(scope="module")
def key() -> SigningKey:
    return SigningKey.generate()


@pytest.fixture
def archive(tmp_path: Path, key: SigningKey) -> Path:
    with BundleWriter(tmp_path, "run-1", key) as writer:
        for number in range(3):
            writer.append({"number": number})
        with writer.write("run.json") as file:
            file.write(b'{"run":1}')
        writer.seal(ABOUT)
        return writer.archive()


def members(archive: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as packed:
        return {name: packed.read(name) for name in packed.namelist()}


def pack(path: Path, files: dict[str, bytes], packing: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", packing) as packed:
        for name, content in files.items():
            packed.writestr(name, content)


def add(archive: Path, name: str, content: bytes = b"", mode: int = stat.S_IFREG | 0o644) -> None:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    with zipfile.ZipFile(archive, "a") as packed:
        packed.writestr(member, content)


def test_an_archive_holds_the_bundle_and_is_verified_as_it_is(tmp_path: Path, archive: Path, key: SigningKey) -> None:
    directory = tmp_path / "run-1"
    assert archive == tmp_path / "run-1.zip"
    assert members(archive) == {name: (directory / name).read_bytes() for name in sorted(os.listdir(directory))}
    assert verify(archive, [key.public]) == verify(directory, [key.public])
    assert found(archive, key) == []
    assert sorted(os.listdir(tmp_path)) == ["run-1", "run-1.zip"]


def test_the_same_bundle_is_the_same_archive_and_any_tools_archive_will_do(
    tmp_path: Path, archive: Path, key: SigningKey
) -> None:
    first, files = archive.read_bytes(), members(archive)
    archive.unlink()
    for name in files:
        os.utime(tmp_path / "run-1" / name, (1, 1))
    for packing in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        pack(tmp_path / "other.zip", dict(reversed(files.items())), packing)
        assert found(tmp_path / "other.zip", key) == []
    assert write_archive(tmp_path / "run-1").read_bytes() == first


def test_a_bundle_that_is_not_closed_is_not_packed(tmp_path: Path, key: SigningKey) -> None:
    with BundleWriter(tmp_path, "run-1", key) as writer, pytest.raises(BundleError, match="BUNDLE_OPEN"):
        writer.archive()


def test_what_was_changed_in_an_archive_is_named(tmp_path: Path, archive: Path, key: SigningKey) -> None:
    files = members(archive)
    for changed, told in (
        ({**files, "run.json": b"{}"}, ["DIGEST_MISMATCH run.json"]),
        ({**files, "more.json": b"{}"}, ["FILE_UNLISTED more.json"]),
        ({**files, "nested.zip": archive.read_bytes()}, ["FILE_UNLISTED nested.zip"]),
        ({name: files[name] for name in files if name != "run.json"}, ["FILE_MISSING run.json"]),
        ({name: files[name] for name in files if name != ATTESTATION}, [f"INCOMPLETE {ATTESTATION}"]),
        ({}, [f"INCOMPLETE {ATTESTATION}"]),
    ):
        pack(tmp_path / "changed.zip", changed)
        assert found(tmp_path / "changed.zip", key) == told


@pytest.mark.parametrize(
    "name", ["../run.json", "/etc/passwd", "a/b.json", "folder/", "a\\b", "C:run.json", "..", ".hidden", "a b", "é.json", "a\nb", "-rf", "n" * 300]
)  # fmt: skip
def test_a_name_that_leads_elsewhere_is_named_and_goes_nowhere(
    tmp_path: Path, archive: Path, key: SigningKey, name: str
) -> None:
    before = sorted(tmp_path.rglob("*"))
    add(archive, name, b"{}")
    (failure,) = verify(archive, [key.public]).failures
    assert failure.code == "BAD_NAME"
    assert failure.file.isascii()
    assert failure.file.isprintable()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_is_cut_at_a_zero_byte_by_others_is_read_whole(archive: Path, key: SigningKey) -> None:
    add(archive, "aaaa.json+..", b"{}")
    archive.write_bytes(archive.read_bytes().replace(b"aaaa.json+..", b"aaaa.json\0.."))
    assert found(archive, key) == ["BAD_NAME aaaa.json\\x00.."]


def test_a_member_that_is_no_file_or_is_there_twice_is_named(archive: Path, key: SigningKey) -> None:
    add(archive, "link.json", b"/etc/passwd", stat.S_IFLNK | 0o777)
    add(archive, "folder", b"", stat.S_IFDIR | 0o755)
    add(archive, "pipe", b"", stat.S_IFIFO | 0o644)
    with pytest.warns(UserWarning, match="Duplicate name"):
        add(archive, "run.json", b"{}")
    told = found(archive, key)
    assert told[:4] == ["SYMLINK link.json", "NOT_A_FILE folder", "NOT_A_FILE pipe", "DUPLICATE_FILE run.json"]


def test_an_archive_of_too_many_members_is_not_looked_at(tmp_path: Path, key: SigningKey) -> None:
    for count in (MOST_FILES + 1, 5_000):
        pack(tmp_path / "many.zip", {f"f{number}": b"" for number in range(count)})
        assert found(tmp_path / "many.zip", key) == ["TOO_MANY_FILES ."]


def test_a_bomb_is_not_unpacked(tmp_path: Path, archive: Path, key: SigningKey) -> None:
    files = members(archive)
    tracemalloc.start()
    pack(tmp_path / "bomb.zip", {**files, DECISIONS: b"\0" * 2**24})
    pack(tmp_path / "listed.zip", {**files, "run.json": b"\0" * 2**24})
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as inner:
        inner.writestr("zeros", b"\0" * 2**24)
    pack(tmp_path / "nested.zip", {**files, "nested.zip": content.getvalue()})
    tracemalloc.reset_peak()
    begun = tracemalloc.get_traced_memory()[0]
    assert found(tmp_path / "bomb.zip", key) == ["ARCHIVE_BOMB ."]
    assert found(tmp_path / "listed.zip", key) == ["ARCHIVE_BOMB ."]
    assert found(tmp_path / "nested.zip", key) == ["FILE_UNLISTED nested.zip"]
    assert tracemalloc.get_traced_memory()[1] - begun < 2**22
    tracemalloc.stop()


def patched(archive: Path, signature: bytes, offset: int, form: str, *values: int) -> None:
    """Changes what every header of a kind says."""
    content = bytearray(archive.read_bytes())
    at = content.find(signature)
    while at >= 0:
        struct.pack_into(form, content, at + offset, *values)
        at = content.find(signature, at + 4)
    archive.write_bytes(content)


def test_sizes_that_are_made_up_are_not_believed(tmp_path: Path, archive: Path, key: SigningKey) -> None:
    whole = archive.read_bytes()
    for size, code in ((4 * GIB - 1, "TOO_LARGE"), (GIB // 2, "ARCHIVE_BOMB"), (0, "ARCHIVE_MALFORMED")):
        patched(archive, b"PK\x01\x02", 24, "<L", size)  # unpacked
        assert code in codes(verify(archive, [key.public])), size
        archive.write_bytes(whole)
    patched(archive, b"PK\x01\x02", 20, "<L", 4 * GIB - 1)  # packed
    assert not verify(archive, [key.public]).ok
    archive.write_bytes(whole)
    patched(archive, b"PK\x01\x02", 42, "<L", 0)  # every member is the first one
    assert found(archive, key) == ["ARCHIVE_BOMB ."]


def test_members_that_are_packed_or_locked_otherwise_are_named(tmp_path: Path, archive: Path, key: SigningKey) -> None:
    files = members(archive)
    pack(tmp_path / "bzip2.zip", files, zipfile.ZIP_BZIP2)
    assert set(codes(verify(tmp_path / "bzip2.zip", [key.public]))) == {"ARCHIVE_MALFORMED", "INCOMPLETE"}
    patched(archive, b"PK\x01\x02", 8, "<H", 1)  # encrypted
    assert set(codes(verify(archive, [key.public]))) == {"ARCHIVE_MALFORMED", "INCOMPLETE"}


def test_what_is_no_plain_archive_is_refused(tmp_path: Path, archive: Path, key: SigningKey) -> None:
    whole = archive.read_bytes()
    with_locator = whole[:-22] + b"PK\x06\x07" + bytes(16) + whole[-22:]
    for content in (
        b"", b"PK", b"no archive", bytes(22), b"PK\x05\x06" + bytes(17), whole[:-1], whole + b"\n", b"#!/bin/sh\n" + whole, whole[100:],
        whole * 2, with_locator, random.Random(1).randbytes(5_000), b"PK\x05\x06" + b"\xff" * 18,
    ):  # fmt: skip
        (tmp_path / "odd.zip").write_bytes(content)
        assert found(tmp_path / "odd.zip", key) == ["ARCHIVE_MALFORMED ."], content[:20]


def test_a_byte_that_is_flipped_in_an_archive_is_found_unless_it_changes_nothing_in_it(
    tmp_path: Path, archive: Path, key: SigningKey
) -> None:
    whole, files, generator = archive.read_bytes(), members(archive), random.Random(3)
    harmless = 0
    for position in range(0, len(whole), 5):
        flipped = bytes([whole[position] ^ generator.randrange(1, 256)])
        archive.write_bytes(whole[:position] + flipped + whole[position + 1 :])
        if verify(archive, [key.public]).ok:
            harmless += 1  # a time stamp, or who made it
            assert members(archive) == files
    assert 0 < harmless < len(whole) / 20


def test_a_document_that_packs_as_well_as_a_bomb_does_is_not_taken_for_one(tmp_path: Path, key: SigningKey) -> None:
    path = make_bundle(tmp_path, key, documents={"zeros.json": b"0" * 2**22})
    assert found(write_archive(path), key) == []


def test_several_may_pack_the_same_bundle_at_once(tmp_path: Path, key: SigningKey) -> None:
    path = make_bundle(tmp_path, key, documents={"run.json": os.urandom(2**20)})
    threads = [threading.Thread(target=write_archive, args=(path,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found(tmp_path / "run-1.zip", key) == []
    assert sorted(os.listdir(tmp_path)) == ["run-1", "run-1.zip"]


def test_a_bundle_that_is_too_large_for_an_archive_is_not_packed(tmp_path: Path, key: SigningKey) -> None:
    path = make_bundle(tmp_path, key)
    with BundleWriter(tmp_path, "run-2", key) as writer:
        writer.seal(ABOUT)
    with (tmp_path / "run-2" / DECISIONS).open("ab") as file:
        file.truncate(4 * GIB)
    with pytest.raises(BundleError, match="ARCHIVE_TOO_LARGE"):
        writer.archive()
    assert sorted(os.listdir(tmp_path)) == [path.name, "run-2"]
