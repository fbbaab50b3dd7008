"""Day-ahead prices from the ENTSO-E Transparency Platform (document A44)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from tao_flows.clock import iso_from_ns
from tao_flows.errors import InputError
from tao_flows.signals.http import Client
from tao_flows.signals.model import check_value
from tao_flows.signals.spans import Span
from tao_flows.signals.spec import SignalSpec
from tao_flows.signals.times import ns_from_iso
from tao_flows.units import NS_PER_S, S_PER_H

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_H_NS: Final = S_PER_H * NS_PER_S
_RESOLUTION_NS: Final = {"PT15M": _H_NS // 4, "PT30M": _H_NS // 2, "PT60M": _H_NS, "PT1H": _H_NS}
_MOST_POSITIONS: Final = 4 * 24 * 8
"""Quarters of an hour in a week and a day: more than was asked for."""
_SEQUENCE: Final = "classificationSequence_AttributeInstanceComponent.position"
# Asked by POST, since there the token is a header; with GET it would be a part of the URL.
_REQUEST: Final = """<StatusRequest_MarketDocument xmlns="urn:iec62325.351:tc57wg16:451-5:statusrequestdocument:4:0">
<mRID>tao-flows</mRID><type>A59</type>
<sender_MarketParticipant.mRID codingScheme="A01">10X1001A1001A450</sender_MarketParticipant.mRID>
<sender_MarketParticipant.marketRole.type>A07</sender_MarketParticipant.marketRole.type>
<receiver_MarketParticipant.mRID codingScheme="A01">10X1001A1001A450</receiver_MarketParticipant.mRID>
<receiver_MarketParticipant.marketRole.type>A32</receiver_MarketParticipant.marketRole.type>
<createdDateTime>{created}</createdDateTime>
{attributes}
</StatusRequest_MarketDocument>"""
_ATTRIBUTE: Final = (
    "<AttributeInstanceComponent><attribute>{}</attribute><attributeValue>{}</attributeValue>"
    "</AttributeInstanceComponent>"
)


def fetch_entsoe(spec: SignalSpec, client: Client, key: str, now_wall_ns: int) -> list[Span]:
    """The prices of a bidding zone from some hours ago to the end of what is published, a kWh.

    Raises:
        SourceError: there is no answer, a refusal, or an answer that cannot be used.
        InputError: a value, a time or an order in the answer that cannot be.
    """
    start = now_wall_ns // _H_NS * _H_NS - 3 * _H_NS
    about = {
        "DocumentType": "A44",
        "In_Domain": spec.area,
        "Out_Domain": spec.area,
        "TimeInterval": f"{_minute(start)}Z/{_minute(start + 51 * _H_NS)}Z",
    }
    # What settings may hold as a zone needs no escapes.
    attributes = "\n".join(_ATTRIBUTE.format(name, value) for name, value in about.items())
    body = _REQUEST.format(created=f"{_minute(now_wall_ns)}:00Z", attributes=attributes)
    headers = {"Content-Type": "application/xml", "SECURITY_TOKEN": key}
    answer = client.ask(f"{spec.url}/api", headers, body.encode(), also=frozenset({400}))
    return _spans(_parse(answer, client), spec, client)


def _minute(wall_ns: int) -> str:
    return (iso_from_ns(wall_ns) or "")[:16]


def _parse(answer: bytes, client: Client) -> Element:
    from xml.etree import ElementTree as ET

    if b"<!DOCTYPE" in answer or b"<!ENTITY" in answer:
        raise client.rubbish("the answer defines entities, which no document of theirs does")
    try:
        root = ET.fromstring(answer)  # noqa: S314 - bounded in size, and without entities
    except ET.ParseError:
        raise client.rubbish("the answer is not XML") from None
    if _local(root) == "Acknowledgement_MarketDocument":
        text = next((_text(reason, "text") for reason in _children(root, "Reason")), "")
        remedy = "check the zone; prices of tomorrow are published early in the afternoon, Central European Time"
        raise client.error("SIGNAL_NO_DATA", text or "an acknowledgement without a reason", remedy)
    if _local(root) != "Publication_MarketDocument":
        raise client.rubbish(f"the answer is a {_local(root)}")
    return root


def _spans(root: Element, spec: SignalSpec, client: Client) -> list[Span]:
    series = _children(root, "TimeSeries")
    if not series:
        raise client.rubbish("there is no time series in the answer")
    # Several auctions of a zone are told apart by their number alone, in any order: the first is the day-ahead market.
    first = min(_sequence(one) for one in series)
    spans: list[Span] = []
    for one in series:
        if _sequence(one) != first:
            continue
        unit = f"{_text(one, 'currency_Unit.name')}/{_text(one, 'price_Measure_Unit.name')}"
        if unit.casefold() != spec.unit.casefold():
            raise client.error("SIGNAL_UNIT", f"prices are in {unit}", f'write unit = "{unit[:3]}/MWh"')
        if _text(one, "in_Domain.mRID") != spec.area:
            raise client.rubbish(f"in_Domain is {_text(one, 'in_Domain.mRID')!r}, and {spec.area!r} was asked for")
        for period in _children(one, "Period"):
            spans += _period(period, spec)
    return sorted(spans)


def _sequence(series: Element) -> int:
    return int(_text(series, _SEQUENCE) or "1")


def _period(period: Element, spec: SignalSpec) -> list[Span]:
    """The spans of a period. A position that is missing has the price before it (curve type A03)."""
    (interval,) = _children(period, "timeInterval")
    start, end = ns_from_iso(_text(interval, "start")), ns_from_iso(_text(interval, "end"))
    resolution = _text(period, "resolution")
    if resolution not in _RESOLUTION_NS:
        raise InputError("BAD_SIGNAL_ORDER", f"resolution {resolution[:20]!r} is unknown", "")
    length_ns = _RESOLUTION_NS[resolution]
    count, rest = divmod(end - start, length_ns)
    prices: dict[int, float] = {}
    for point in _children(period, "Point"):
        position = int(_text(point, "position"))
        if position in prices or not 1 <= position <= count:
            raise InputError("BAD_SIGNAL_ORDER", f"position {position} is there twice, or out of range", "")
        prices[position] = check_value(float(_text(point, "price.amount")), spec.signal) * spec.factor
    if rest or 1 not in prices or count > _MOST_POSITIONS:
        raise InputError("BAD_SIGNAL_ORDER", "a period without its first position, or of no whole length", "")
    spans = []
    price = prices[1]
    for position in range(1, count + 1):
        price = prices.get(position, price)
        spans.append(Span(start + (position - 1) * length_ns, start + position * length_ns, price))
    return spans


def _local(element: Element) -> str:
    return element.tag.rpartition("}")[2]


def _children(element: Element, name: str) -> list[Element]:
    return [child for child in element if _local(child) == name]


def _text(element: Element, name: str) -> str:
    return next(((child.text or "").strip() for child in _children(element, name)), "")
