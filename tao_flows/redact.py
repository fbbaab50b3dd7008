"""Takes secrets out of command lines before they are kept: by rule, so that the same line always reads the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

MASK: Final = "[redacted]"
_NAMES: Final = (
    r"(?:pass(?:word|wd|phrase)?|pwd|secret|token|(?:api|access|private)[-_]?key|[-_]key(?![\w-])|credential|auth"
    r"|cookie|session|signature|\bsig\b|dsn|connection[-_]?string)"
)
_SECRET_NAME: Final = re.compile(_NAMES, re.IGNORECASE)
_OPTION: Final = re.compile(r"--.+|-[A-Za-z]")
"""What is taken for the next option, and not for the secret that the option before it asks for."""
_ASSIGNMENT: Final = re.compile(r"(?P<name>[A-Za-z0-9_.-]+)(?P<sep>[=:])(?P<value>.+)", re.DOTALL)
_INNER: Final = re.compile(
    rf"(?<![\w.-])(?P<name>-[\w.-]*{_NAMES}[\w.-]*(?:\s*[=:]\s*|\s+)|[\w.-]*{_NAMES}[\w.-]*[\"']?\s*[=:]\s*)"
    r"(?P<value>\"[^\"]*\"|'[^']*'|[^\s;|&\"']+)",
    re.IGNORECASE,
)
"""An option or assignment somewhere in a text, as in the script of ``sh -c``."""
_USER: Final = re.compile(r"(?<![\w-])(?P<user>(?:-u|--user|--proxy-user)[\s=]+[^:\s]+):\S+")
_USER_OPTIONS: Final = frozenset({"-u", "--user", "--proxy-user"})
_URL_USER: Final = re.compile(r"(?P<scheme>\b[a-z][a-z0-9+.-]*://)(?:[^/\s]*|[^/\s:]*:\S*)@", re.IGNORECASE)
"""Up to the last @: a password may hold one that should have been percent-encoded."""
_URL_QUERY: Final = re.compile(r"(?P<start>[?&])(?P<name>[^=&#\s]+)=(?P<value>[^&#\s]*)")
_BEARER: Final = re.compile(r"\b(bearer|basic)\s+\S+", re.IGNORECASE)
_ISSUED: Final = re.compile(
    r"\b(?:[srp]k[-_](?:live|test|proj|ant)[-_][\w-]{8,}|gh[pousr]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|xox[abeoprs]-[\w-]{8,}|hf_\w{20,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{8,}\.[\w-]{8,}[\w.-]*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
"""Keys that say by their beginning who issued them; JSON Web Tokens; private keys in PEM."""
# A long run of letters and digits with both cases and digits in it is a key more often than a word.
_KEYLIKE: Final = re.compile(
    r"(?<![A-Za-z0-9+_-])(?=[A-Za-z0-9+_-]*[0-9])(?=[A-Za-z0-9+_-]*[A-Z])(?=[A-Za-z0-9+_-]*[a-z])[A-Za-z0-9+_-]{24,}"
)
_LEAST_ISSUED: Final = 13
_LEAST_KEYLIKE: Final = 24
"""Characters of the shortest text that ``_ISSUED`` or ``_KEYLIKE`` finds something in."""
_MAX_ARGUMENT: Final = 200
_MAX_READ: Final = 2_000
"""What lies beyond is never shown, and need not be searched."""


def redact_command(argv: Sequence[str]) -> list[str]:
    """The command line with what looks like a secret masked, and each argument cut to a bounded length.

    Masked are: the value of an option or assignment whose name speaks of a secret, in an argument of its own or within
    a script, the argument after such an option, passwords after ``-u user:``, user names and passwords in URLs, such
    parameters in URL queries, bearer tokens, keys known by their beginning, and long key-like texts. What is no secret
    is masked rather than a secret shown.
    """
    redacted: list[str] = []
    before = ""
    for argument in argv:
        if before.startswith("-") and _SECRET_NAME.search(before) and not _OPTION.fullmatch(argument):
            redacted.append(MASK)
            before = ""
            continue
        start = f"{before} " if before in _USER_OPTIONS else ""
        redacted.append(_shorten(start + argument).removeprefix(start))
        before = argument if redacted[1:] and "=" not in argument else ""
    return redacted


def is_secret_name(name: str) -> bool:
    """Whether a name speaks of a secret, such as ``api_key`` or ``DB_PASSWORD``."""
    return bool(_SECRET_NAME.search(name))


def redact_text(text: str) -> str:
    """A text that was meant for people, such as a reason or a tag, with what looks like a secret in it masked.

    Masked is what ``redact_command`` masks in one argument. Nothing is cut off but what lies beyond a length that no
    text for people has.
    """
    return _redact(_bounded(text))


def redact_name(text: str) -> str:
    """The name of a run, a task or a pool without passwords: a long run of letters and digits is part of it."""
    return _redact_structure(_bounded(text))


def _bounded(text: str) -> str:
    return text if len(text) <= _MAX_READ else f"{text[:_MAX_READ]}… ({len(text)} characters)"


def _shorten(argument: str) -> str:
    shown = _redact(argument[:_MAX_READ])
    if len(argument) <= _MAX_READ and len(shown) <= _MAX_ARGUMENT:
        return shown
    return f"{shown[:_MAX_ARGUMENT]}… ({len(argument)} characters)"


def _redact(argument: str) -> str:
    argument = _redact_structure(argument)
    return argument if len(argument) < _LEAST_KEYLIKE else _KEYLIKE.sub(MASK, argument)


def _redact_structure(argument: str) -> str:
    # A pattern is only tried on what has the signs that it cannot do without: most texts have none of them.
    if len(argument) >= _LEAST_ISSUED:
        argument = _ISSUED.sub(MASK, argument)
    if "://" in argument:
        argument = _URL_USER.sub(rf"\g<scheme>{MASK}@", argument)
    if "=" in argument:
        argument = _URL_QUERY.sub(_mask_query, argument)
    if ":" in argument:
        argument = _USER.sub(rf"\g<user>:{MASK}", argument)
    argument = _BEARER.sub(rf"\1 {MASK}", argument)
    if not _SECRET_NAME.search(argument):
        return argument
    match = _ASSIGNMENT.fullmatch(argument)
    if match and _SECRET_NAME.search(match["name"]):
        return f"{match['name']}{match['sep']}{MASK}"
    return _INNER.sub(rf"\g<name>{MASK}", argument)


def _mask_query(match: re.Match[str]) -> str:
    value = MASK if _SECRET_NAME.search(match["name"]) else match["value"]
    return f"{match['start']}{match['name']}={value}"
