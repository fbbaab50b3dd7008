"""``tao-flows expire``: which bundles go, which stay, and that nothing else is touched."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tao_flows.errors import InputError
from tao_flows.governance.documents import moment
from tao_flows.governance.expiry import expire
from tao_flows.governance.keys import SigningKey, VerifyKey, new_keys
from tao_flows.governance.writer import BundleWriter

S = 1_000_000_000
DAY = 86_400 * S
NOW = 1_790_000_000 * S
OLD = NOW - 40 * DAY
NEW = NOW - 10 * DAY


class Kept:
    """A directory of bundles."""

    def __init__(self, root: Path) -> None:
        self.root = root / "bundles"
        self.key: SigningKey = new_keys(root / "keys")
        self.public = root / "keys" / "signing.pub"

    def add(self, name: str, wall_ns: int = OLD, *, archive: bool = False, key: SigningKey | None = None) -> Path:
        """A sealed bundle, or a further revision of one."""
        with BundleWriter(self.root, name, key or self.key) as writer:
            writer.append({"kind": "decision", "n": 1})
            writer.seal({"complete": True, "signer": "seal", "run": {}, "sealed": moment(wall_ns)})
            if archive:
                writer.archive()
            return writer.path

    def expire(self, period: str = "30d", *, delete: bool = True) -> dict[str, str]:
        """By name: what became of each."""
        found = expire(self.root, period, [VerifyKey.load(self.public)], NOW, delete=delete)
        return {each.path.name: f"{each.status} {each.code}".strip() for each in found}

    def names(self) -> set[str]:
        return set(os.listdir(self.root))


@pytest.fixture
def kept(tmp_path: Path) -> Kept:
    return Kept(tmp_path)


def test_only_bundles_older_than_the_period_are_deleted_and_only_when_told(kept: Kept) -> None:
    kept.add("old", archive=True)
    kept.add("new", NEW)
    due = {"old": "due", "old.zip": "due", "new": "kept"}
    assert kept.expire(delete=False) == due
    assert kept.names() == {"old", "old.zip", "new"}
    assert kept.expire() == {"old": "deleted", "old.zip": "deleted", "new": "kept"}
    assert kept.names() == {"new"}
    assert kept.expire() == {"new": "kept"}


def test_the_revisions_of_a_run_go_together(kept: Kept) -> None:
    kept.add("run")
    kept.add("run", NEW)
    assert kept.expire() == {"run": "kept", "run.r2": "kept"}
    assert kept.expire("5d") == {"run": "deleted", "run.r2": "deleted"}
    assert kept.names() == set()


def test_what_is_unsealed_or_does_not_verify_stays(kept: Kept) -> None:
    with BundleWriter(kept.root, "open", kept.key) as writer:
        writer.append({"kind": "decision", "n": 1})
    with (kept.add("changed") / "decisions.jsonl").open("ab") as log:
        log.write(b"x")
    kept.add("strangers", key=SigningKey.generate())
    (kept.root / "notes.txt").write_text("mine")
    before = kept.names()
    found = kept.expire("1d")
    assert found.pop("open") == "unsealed INCOMPLETE"
    assert set(found) == {"changed", "strangers"}
    assert all(status.startswith("refused ") for status in found.values())
    assert kept.names() == before


def test_links_are_not_followed(kept: Kept, tmp_path: Path) -> None:
    elsewhere = Kept(tmp_path / "elsewhere")
    elsewhere.key, elsewhere.public = kept.key, kept.public
    target = elsewhere.add("old")
    own = kept.add("own")
    (kept.root / "link").symlink_to(target)
    (own / "inner").symlink_to(target)
    assert kept.expire() == {"link": "refused SYMLINK", "own": "refused SYMLINK"}
    assert (target / "attestation.dsse.json").exists()


def test_a_bundle_that_a_sealer_writes_to_stays(kept: Kept) -> None:
    kept.add("run")
    with BundleWriter(kept.root, "run", kept.key):
        assert set(kept.expire().values()) == {"unsealed BUNDLE_BUSY"}
    assert "run" in kept.names()


def test_a_pass_that_was_cut_short_is_finished(kept: Kept) -> None:
    kept.add("run").rename(kept.root / ".run.expired")
    assert kept.expire(delete=False) == {}
    assert kept.names() == {".run.expired"}
    assert kept.expire() == {}
    assert kept.names() == set()


def test_a_period_that_is_none_is_refused(kept: Kept) -> None:
    kept.add("run")
    with pytest.raises(InputError, match="no period"):
        kept.expire("soon")


def test_the_command_needs_a_period_and_ends_with_1_where_one_is_refused(kept: Kept, tmp_path: Path) -> None:
    kept.add("old")
    kept.add("strangers", key=SigningKey.generate())
    env = {name: value for name, value in os.environ.items() if not name.startswith("TAO_FLOWS_")}
    env |= {"HOME": str(tmp_path), "TAO_FLOWS_BUNDLES": str(kept.root)}

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "from tao_flows.cli import main; main()", "expire", "--key", str(kept.public)]
        return subprocess.run([*command, *more], env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    unset = run()
    assert unset.returncode == 2
    assert "NO_RETENTION" in unset.stderr
    done = run("--older-than", "1d", "--json")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert (said["period"], said["dry_run"]) == ("1d", False)
    assert {Path(each["path"]).name: each["status"] for each in said["bundles"]} == {
        "old": "deleted", "strangers": "refused",
    }  # fmt: skip
    assert kept.names() == {"strangers"}
