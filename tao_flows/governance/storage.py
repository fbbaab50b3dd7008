"""Copies of bundles elsewhere: any place that fsspec knows by its URL, such as ``s3://bucket/records``."""

from __future__ import annotations

from pathlib import Path

from tao_flows.config import mask_password
from tao_flows.errors import BundleError, ConfigError, MissingExtraError


def store(archive: Path, where: str) -> str:
    """Copies a bundle's archive into a folder elsewhere; its address there, without a password.

    What is there under the archive's name gives way: it is an earlier revision of the same run's bundle.

    Args:
        archive: the zip file.
        where: the folder, as a path or URL.

    Raises:
        MissingExtraError: fsspec, or what it needs for a place of this kind, is not installed.
        ConfigError: BUNDLE_STORAGE, there is no place of this kind.
        BundleError: BUNDLE_NOT_STORED, it cannot be written there.
    """
    shown = mask_password(where)
    try:
        import fsspec  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("governance", f"a copy of a bundle in {shown}") from None
    try:
        system, folder = fsspec.core.url_to_fs(where)
        target = f"{folder.rstrip('/')}/{archive.name}"
        system.makedirs(folder, exist_ok=True)
        system.put_file(str(archive), target)
    except ImportError as error:
        raise MissingExtraError("governance", f"a copy of a bundle in {shown}: {error}") from None
    except ValueError as error:
        raise ConfigError("BUNDLE_STORAGE", f"{shown}: {error}", "give a path or a URL that fsspec knows") from None
    except Exception as error:
        said = mask_password(f"{type(error).__name__}: {error}".splitlines()[0])
        remedy = "see that this process may write there, or copy it by hand"
        raise BundleError("BUNDLE_NOT_STORED", f"no copy of {archive.name} in {shown}: {said}", remedy) from error
    return mask_password(str(system.unstrip_protocol(target)))
