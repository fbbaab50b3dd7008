"""What providers know their users by: read when it is needed, and never shown."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from tao_flows.errors import SourceError
from tao_flows.signals.spec import PROVIDERS, SignalSpec

_LONGEST: int = 65_536


@dataclass(frozen=True, slots=True)
class Credentials:
    """A key, token or password, and for some providers its user's name."""

    key: str = field(default="", repr=False)
    user: str = ""


KeySource = Callable[[SignalSpec], "Credentials | None"]
"""Where keys are kept besides variables and files, such as an engine's connections; None: it has none for this signal.
It is called in a background thread, once a refresh."""


def find_credentials(
    spec: SignalSpec, source: KeySource | None = None, env: Mapping[str, str] = os.environ
) -> Credentials:
    """The credentials of a signal: from ``source``, else from the file or the variable that the signal names.

    Raises:
        SourceError: SIGNAL_KEY: the provider needs some, and there are none.
    """
    needs = PROVIDERS[spec.provider].keys
    if needs == "none":
        return Credentials()
    found = source(spec) if source is not None else None
    if found is None:
        found = Credentials(_named_key(spec, env), spec.user or env.get(spec.user_env, "").strip())
    if not found.key:
        raise _missing(spec, f"{spec.provider} needs a key", 'name it: key_env = "VARIABLE" or key_file = "FILE"')
    if needs == "user and key" and not found.user:
        raise _missing(spec, f"{spec.provider} needs a user", 'name it: user = "NAME" or user_env = "VARIABLE"')
    if not (found.key.isprintable() and (needs == "user and key" or found.key.isascii())):
        raise _missing(spec, "the key holds characters that no key has", "write the key alone, on one line")
    return found


def _named_key(spec: SignalSpec, env: Mapping[str, str]) -> str:
    if spec.key_conn:
        problem = f"the connection {spec.key_conn} is kept by an engine, and this process is not of one"
        raise _missing(spec, problem, "name the key by key_env or key_file here")
    if spec.key_file:
        try:
            with open(spec.key_file, encoding="utf-8") as file:
                return file.read(_LONGEST).strip()
        except OSError as error:
            raise _missing(spec, f"{spec.key_file}: {error.strerror}", "make it readable to this user") from None
        except UnicodeDecodeError:
            raise _missing(spec, f"{spec.key_file}: not UTF-8 text", "write the key alone, on one line") from None
    if spec.key_env and not env.get(spec.key_env, "").strip():
        raise _missing(spec, f"the variable {spec.key_env} is not set", "set it to the key, or name a key_file")
    return env.get(spec.key_env, "").strip()


def _missing(spec: SignalSpec, problem: str, remedy: str) -> SourceError:
    return SourceError("SIGNAL_KEY", f"{spec.name}: {problem}", remedy)
