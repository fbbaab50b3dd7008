"""The fleet page's filters, as the address has them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from typing import Final

from tao_flows.errors import InputError
from tao_flows.figures import Quality
from tao_flows.ledger.reads import Scope
from tao_flows.records import RunKey
from tao_flows.units import NS_PER_S, parse_duration_s

DEFAULT_SINCE: Final = "7d"
SINCES: Final = ("24h", "7d", "28d", "90d")
"""What the form offers; an address may name any."""
_LONGEST_S: Final = 1_000_000 * 86_400.0


@dataclass(frozen=True, slots=True)
class Filters:
    """What is shown; an empty field filters nothing."""

    since: str = DEFAULT_SINCE
    """A duration, such as ``7d``."""
    engine: str = ""
    flow: str = ""
    team: str = ""
    owner: str = ""
    pool: str = ""
    quality: str = ""
    namespace: str = ""
    """One deployment of those that share the ledger."""

    @property
    def since_s(self) -> float:
        """Seconds that are looked back."""
        return parse_duration_s(self.since)

    def scope(self, now_wall_ns: int, flows: Collection[str] | None, before_s: float | None = None) -> Scope:
        """The tasks they let through since; with ``before_s``, of so many seconds before that."""
        begin_ns = max(0, now_wall_ns - round(self.since_s * NS_PER_S))
        until_ns = None
        if before_s is not None:
            begin_ns, until_ns = max(0, begin_ns - round(before_s * NS_PER_S)), begin_ns
        named = (self.engine, self.flow, self.team, self.owner, self.pool, self.quality)
        return Scope(begin_ns, *named, flows, until_ns, self.namespace)

    def covers(self, key: RunKey, flows: Collection[str] | None) -> bool:
        """Whether they let through a try of which the key alone is known."""
        named = ((self.engine, key.engine), (self.namespace, key.namespace), (self.flow, key.flow))
        return all(wanted in ("", given) for wanted, given in named) and (flows is None or key.flow in flows)


def parse_filters(query: Mapping[str, str]) -> tuple[Filters, tuple[InputError, ...]]:
    """The filters of an address; what is wrong in it is told and left out, what is none of them is left alone."""
    given = {f.name: query[f.name].strip() for f in fields(Filters) if query.get(f.name, "").strip()}
    problems: list[InputError] = []
    if "since" in given and (problem := _wrong_since(given["since"])) is not None:
        problems.append(problem)
        del given["since"]
    if given.get("quality", Quality.MEASURED.value) not in {quality.value for quality in Quality}:
        remedy = f"give {', '.join(quality.value for quality in Quality)}"
        problems.append(InputError("BAD_FILTER", f"quality: {given.pop('quality')!r} is none", remedy))
    return Filters(**given), tuple(problems)


def _wrong_since(text: str) -> InputError | None:
    try:
        seconds = parse_duration_s(text, what="since")
    except InputError as error:
        return error
    if 0 < seconds <= _LONGEST_S:
        return None
    return InputError("BAD_FILTER", f"since: {text!r} is out of range", "give a duration above 0, up to 1000000d")
