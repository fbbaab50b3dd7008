"""A bundle as one zip file."""

from __future__ import annotations

import os
import shutil
import stat
import threading
import zipfile
from pathlib import Path
from typing import BinaryIO, Final

from tao_flows.errors import BundleError
from tao_flows.governance.layout import ARCHIVE_SUFFIX, MOST_BYTES, part_name

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
"""The first time that a zip can say: archives of the same files are the same bytes."""
_COPY_BYTES: Final = 256 * 1024
_MOST_RATIO: Final = 300
"""Bytes out of one byte in. A log has a fresh hash in each line and stays under 100; a bomb comes close to 1,032."""
_RATIO_COUNTS_FROM: Final = 1024 * 1024


def write_archive(bundle: Path) -> Path:
    """Packs a bundle's directory into ``<its name>.zip`` beside it, the same bytes for the same files.

    Raises:
        BundleError: ARCHIVE_TOO_LARGE.
        OSError: a file cannot be read or written.
    """
    path = bundle.with_name(bundle.name + ARCHIVE_SUFFIX)
    # Of this thread alone: several may be asked for the same archive.
    part = bundle.with_name(part_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}"))
    files = sorted(entry.path for entry in os.scandir(bundle) if entry.is_file(follow_symlinks=False))
    if sum(os.path.getsize(file) for file in files) > MOST_BYTES:
        raise BundleError("ARCHIVE_TOO_LARGE", f"{bundle} is too large for one archive", "hand over the directory")
    try:
        with open(part, "wb") as out:
            if any(map(is_bomb, _pack(out, files, zipfile.ZIP_DEFLATED))):
                out.truncate(0)
                out.seek(0)
                _pack(out, files, zipfile.ZIP_STORED)
            out.flush()
            os.fsync(out.fileno())
        os.rename(part, path)
    finally:
        part.unlink(missing_ok=True)
    return path


def is_bomb(member: zipfile.ZipInfo) -> bool:
    """Whether a member unpacks to more than any that is written here."""
    return member.file_size > max(_RATIO_COUNTS_FROM, _MOST_RATIO * member.compress_size)


def _pack(out: BinaryIO, files: list[str], packing: int) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(out, "w") as archive:
        for file in files:
            member = zipfile.ZipInfo(os.path.basename(file), _EPOCH)
            member.compress_type, member.external_attr = packing, (stat.S_IFREG | 0o644) << 16
            member.create_system = 3  # Unix: the attributes are a mode
            with open(file, "rb") as source, archive.open(member, "w") as packed:
                shutil.copyfileobj(source, packed, _COPY_BYTES)
        return archive.infolist()
