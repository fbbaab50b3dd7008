"""Tokens: one or more a team, of which the file holds the hashes alone."""

from __future__ import annotations

import hmac
import json
import logging
import os
import re
import secrets
import stat
import threading
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from tao_flows.errors import ConfigError, InputError
from tao_flows.tomlfile import read_toml

log = logging.getLogger("tao_flows.ingest")

_PREFIX: Final = "tao_"
"""By it, programs that look for leaked secrets can tell one."""
_BYTES: Final = 32
# A token is 256 random bits: there is nothing to guess that a slow hash would protect.
_HASH: Final = re.compile(r"sha256:[0-9a-f]{64}")
_MOST_NAME: Final = 200


class TokenFile:
    """The teams and the hashes of their tokens, read again whenever the file has changed. Safe to use from threads.

    Args:
        path: a TOML file of ``team = "sha256:..."`` or ``team = ["sha256:...", "sha256:..."]``, for its owner alone.

    Raises:
        ConfigError: TOKENS_EXPOSED, others may read or write it; BAD_TOKENS, it holds something else; or as
            ``read_toml``.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._seen = _fingerprint(path)
        self._teams = read_tokens(path)

    def team_of(self, token: str) -> str | None:
        """The team a token is of; None for one that is of none."""
        presented = hash_of(token)
        found = None
        # Every hash is compared, and each in the same time: how long it takes tells nothing.
        for team, hashes in self._now().items():
            for each in hashes:
                if hmac.compare_digest(each, presented):
                    found = team
        return found

    def _now(self) -> Mapping[str, tuple[str, ...]]:
        with self._lock:
            seen = _fingerprint(self.path)
            if seen != self._seen:
                self._seen = seen
                try:
                    self._teams = read_tokens(self.path)
                except ConfigError as error:
                    log.warning("the tokens stay as they were: %s", error)
            return self._teams


def read_tokens(path: Path) -> dict[str, tuple[str, ...]]:
    """By team, the hashes of its tokens.

    Raises:
        ConfigError: as ``TokenFile``.
    """
    tables = read_toml(path)
    if (mode := stat.S_IMODE(path.stat().st_mode)) & 0o077:
        raise ConfigError("TOKENS_EXPOSED", f"{path} has mode {mode:o}: others may use it", f"chmod 600 {path}")
    teams: dict[str, tuple[str, ...]] = {}
    for team, value in tables.items():
        hashes: list[Any] = value if isinstance(value, list) else [value]
        if not all(isinstance(each, str) and _HASH.fullmatch(each) for each in hashes):
            remedy = "make tokens with `tao-flows ingest token --team NAME`"
            raise ConfigError("BAD_TOKENS", f'{path}: {team!r} is not "sha256:..." or a list of these', remedy)
        teams[team] = tuple(hashes)
    return teams


def add_token(path: Path, team: str, *, replace: bool = False) -> str:
    """Makes a token for a team and puts its hash into the file, made with mode 0600 if it is not there.

    Args:
        path: the file.
        team: whose records it may write.
        replace: True to end the team's earlier tokens.

    Returns:
        The token. It is kept nowhere.

    Raises:
        InputError: BAD_TEAM, the name is empty, too long, or not printable.
        ConfigError: as ``TokenFile``; TOKENS_UNWRITABLE.
    """
    if not team.strip() or len(team) > _MOST_NAME or not team.isprintable():
        raise InputError("BAD_TEAM", f"{team!r:.80} names no team", "give the name that its records carry")
    teams = read_tokens(path) if path.exists() else {}
    token = _PREFIX + secrets.token_urlsafe(_BYTES)
    teams[team] = (*(() if replace else teams.get(team, ())), hash_of(token))
    lines = ["# Who may write to the ingest: teams, and the hashes of their tokens.\n"]
    lines += [f"{json.dumps(name)} = {json.dumps(list(hashes))}\n" for name, hashes in teams.items()]
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="utf-8") as file:
            file.writelines(lines)
        new.replace(path)
    except OSError as error:
        new.unlink(missing_ok=True)
        raise ConfigError("TOKENS_UNWRITABLE", f"{path}: {error.strerror}", "give --tokens another file") from None
    return token


def hash_of(token: str) -> str:
    """What the file holds of a token."""
    return f"sha256:{sha256(token.encode()).hexdigest()}"


def _fingerprint(path: Path) -> tuple[int, ...] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode
