"""What a repository is told of a bundle: by DataCite's rules, and only of one that verifies."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bundle_maker import make_bundle
from jsonschema import Draft202012Validator

from tao_flows.governance.keys import new_keys

TAO_FLOWS = Path(sys.executable).with_name("tao-flows")
_NAMED = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string", "minLength": 1}}}
# The mandatory properties of DataCite 4.5 in its JSON form, and the controlled words among those that we write.
KERNEL_4: dict[str, Any] = {
    "type": "object",
    "required": ["schemaVersion", "creators", "titles", "publisher", "publicationYear", "types"],
    "properties": {
        "schemaVersion": {"const": "http://datacite.org/schema/kernel-4"},
        "creators": {"type": "array", "minItems": 1, "items": _NAMED},
        "titles": {"type": "array", "minItems": 1, "items": {"type": "object", "required": ["title"]}},
        "publisher": _NAMED,
        "publicationYear": {"type": "string", "pattern": "^[0-9]{4}$"},
        "types": {
            "type": "object",
            "required": ["resourceTypeGeneral"],
            "properties": {"resourceTypeGeneral": {"enum": ["Dataset"]}, "resourceType": {"type": "string"}},
            "additionalProperties": False,
        },
        "descriptions": {
            "items": {
                "required": ["description", "descriptionType"],
                "properties": {"descriptionType": {"enum": ["Abstract", "Other"]}},
            }
        },
        "alternateIdentifiers": {"items": {"required": ["alternateIdentifier", "alternateIdentifierType"]}},
        "subjects": {"items": {"required": ["subject"]}},
        "rightsList": {"items": {"required": ["rightsIdentifier"]}},
        "language": {"const": "en"},
        "version": {"type": "string"},
        "formats": {"type": "array", "items": {"type": "string"}},
    },
    "additionalProperties": False,
}


def run(bundle: Path, key: Path, *more: str) -> subprocess.CompletedProcess[str]:
    command = [TAO_FLOWS, "deposit", bundle, "--key", key, "--creator", "Ada", "--publisher", "Org B", *more]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    key = new_keys(tmp_path / "keys")
    return make_bundle(tmp_path / "bundles", key), tmp_path / "keys" / "signing.pub"


def test_the_metadata_of_a_bundle_is_what_datacite_asks_for(signed: tuple[Path, Path]) -> None:
    done = run(*signed, "--rights", "CC-BY-4.0")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    Draft202012Validator(KERNEL_4).validate(told)
    assert "r-1" in told["titles"][0]["title"]
    assert "does not establish compliance" in told["descriptions"][1]["description"]
    assert "doi" not in done.stdout.lower(), "the repository gives it"


def test_a_bundle_that_does_not_verify_is_not_described(signed: tuple[Path, Path]) -> None:
    bundle, key = signed
    (bundle / "run.json").write_bytes(b'{"run":2}')
    done = run(bundle, key)
    assert (done.returncode, done.stdout) == (2, "")
    assert "DIGEST_MISMATCH" in done.stderr
