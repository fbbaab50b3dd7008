"""A real HTTP server on the loopback that speaks the shape each signal provider documents, and fails as told."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from xml.etree import ElementTree as ET

S = 1_000_000_000
HALF_H = 1800 * S
H = 3600 * S
KEY = "s3cret-Key-0123456789"
USER = "ada"
PUBLICATION = "urn:iec62325.351:tc57wg16:451-3:publicationdocument:7:3"
ACKNOWLEDGEMENT = "urn:iec62325.351:tc57wg16:451-1:acknowledgementdocument:7:0"


@dataclass
class Fault:
    """What goes wrong with one answer. ``path``: only of requests whose path begins so."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/json"
    before_s: float = 0.0
    """Waits before it says anything."""
    between_s: float = 0.0
    """Waits after each byte of the body."""
    cut_to: int | None = None
    """Closes the connection after so many bytes of the body."""
    is_drop: bool = False
    """Closes the connection without a word."""
    path: str = ""


@dataclass
class Asked:
    """A request as it came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    target: str


class SignalServer:
    """Runs until ``stop``. What it tells is made for ``now_ns``."""

    def __init__(self, now_ns: int) -> None:
        self.now_ns = now_ns
        self.asked: list[Asked] = []
        self.faults: deque[Fault] = deque()
        """For the next answers, one each."""
        self.always: Fault | None = None
        self.issued_ns: int | None = None
        """When forecasts were issued; None: now."""
        self.values: list[float] = [300.0, 250.0, 200.0, 150.0, 100.0, 90.0, 80.0, 120.0]
        self.documents: dict[str, Any] = {}
        """By the end of a path, what is answered instead of the usual."""
        self.logins = 0
        self.tokens: set[str] = set()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._serve(self)

            do_POST = do_GET  # noqa: N815 - http.server's name

            def log_message(self, *_: object) -> None: ...

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_: object) -> None: ...  # clients that hang up are what is tested

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def paths(self) -> list[str]:
        return [asked.path for asked in self.asked]

    def _serve(self, handler: BaseHTTPRequestHandler) -> None:
        where = urlsplit(handler.path)
        body = handler.rfile.read(int(handler.headers.get("Content-Length") or 0))
        query = {name: values[0] for name, values in parse_qs(where.query).items()}
        headers = {name.lower(): value for name, value in handler.headers.items()}
        asked = Asked(handler.command, where.path, query, headers, body, handler.path)
        self.asked.append(asked)
        fault = self._fault(asked)
        handler.close_connection = True
        time.sleep(fault.before_s)
        if fault.is_drop:
            return
        status, document = self._answer(asked)
        content = fault.body if fault.body is not None else document
        handler.send_response(fault.status or status)
        handler.send_header("Content-Type", fault.content_type)
        handler.send_header("Content-Length", str(len(content)))
        handler.send_header("Connection", "close")
        for name, value in fault.headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        if fault.between_s:
            for index in range(len(content)):
                handler.wfile.write(content[index : index + 1])
                handler.wfile.flush()
                time.sleep(fault.between_s)
            return
        handler.wfile.write(content if fault.cut_to is None else content[: fault.cut_to])

    def _fault(self, asked: Asked) -> Fault:
        if self.faults and asked.path.startswith(self.faults[0].path):
            return self.faults.popleft()
        if self.always is not None and asked.path.startswith(self.always.path):
            return self.always
        return Fault()

    def _answer(self, asked: Asked) -> tuple[int, bytes]:
        for end, document in self.documents.items():
            if asked.path.endswith(end):
                content = document(asked) if callable(document) else document
                return 200, content if isinstance(content, bytes) else json.dumps(content).encode()
        status, told = self._route(asked)
        return status, told if isinstance(told, bytes) else json.dumps(told).encode()

    def _route(self, asked: Asked) -> tuple[int, Any]:
        if asked.path.startswith("/v3/carbon-intensity/"):
            return self._electricity_maps(asked)
        if asked.path in ("/login", "/v3/forecast", "/v3/historical"):
            return self._watttime(asked)
        if asked.path.startswith(("/intensity/", "/regional/intensity/")):
            return self._uk(asked)
        if asked.path == "/v1/marketdata":
            return 200, self._awattar()
        if asked.path == "/api":
            return self._entsoe(asked)
        return 404, {"error": "no such path"}

    @property
    def _issued(self) -> str:
        return iso(self.now_ns if self.issued_ns is None else self.issued_ns)

    def _electricity_maps(self, asked: Asked) -> tuple[int, Any]:
        if asked.headers.get("auth-token") != KEY:
            return 401, {"error": "Invalid auth-token"}
        zone, hour = asked.query["zone"], self.now_ns // H * H
        about = {"zone": zone, "updatedAt": self._issued, "temporalGranularity": "hourly"}
        if asked.path.endswith("/latest"):
            more = {"carbonIntensity": self.values[0], "datetime": iso(hour), "createdAt": iso(hour)}
            return 200, {**about, **more, "emissionFactorType": "lifecycle", "isEstimated": True}
        points = [
            {"carbonIntensity": value, "datetime": iso(hour + index * H)} for index, value in enumerate(self.values)
        ]
        return 200, {**about, "forecast": points}

    def _watttime(self, asked: Asked) -> tuple[int, Any]:
        if asked.path == "/login":
            expected = base64.b64encode(f"{USER}:{KEY}".encode()).decode()
            if asked.headers.get("authorization") != f"Basic {expected}":
                return 403, {"error": "Forbidden"}
            self.logins += 1
            self.tokens = {f"token-{self.logins}"}
            return 200, {"token": f"token-{self.logins}"}
        if asked.headers.get("authorization", "").removeprefix("Bearer ") not in self.tokens:
            return 401, {"error": "Token expired"}
        region, five = asked.query["region"], 300 * S
        meta = {
            "data_point_period_seconds": 300,
            "region": region,
            "signal_type": asked.query["signal_type"],
            "units": "lbs_co2_per_mwh",
            "warnings": [],
            "model": {"date": "2023-03-01", "type": "binned_regression"},
        }
        start = self.now_ns // five * five
        if asked.path.endswith("/historical"):
            past = [{"point_time": iso_offset(start - five * back), "value": 700 + back} for back in (3, 2, 1)]
            return 200, {"data": past, "meta": meta}
        points = [
            {"point_time": iso_offset(start + five * index), "value": value} for index, value in enumerate(self.values)
        ]
        meta["generated_at"] = self._issued
        return 200, {"data": points, "meta": {**meta, "generated_at_period_seconds": 300}}

    def _uk(self, asked: Asked) -> tuple[int, Any]:
        parts = asked.path.strip("/").split("/")
        start = ns(parts[2 if parts[0] == "regional" else 1])
        rows = []
        for index in range(96 + 6):
            begin = start + index * HALF_H
            told: dict[str, Any] = {"forecast": int(self.values[index % len(self.values)]), "index": "moderate"}
            if parts[0] != "regional":
                told["actual"] = 266 if begin + HALF_H <= self.now_ns else None
            rows.append({"from": iso_minute(begin), "to": iso_minute(begin + HALF_H), "intensity": told})
        if parts[0] != "regional":
            return 200, {"data": rows}
        kind, place = parts[-2:]
        about = {"regionid": int(place) if kind == "regionid" else 12, "dnoregion": "SSE South", "shortname": "South"}
        return 200, {"data": {**about, **({"postcode": place} if kind == "postcode" else {}), "data": rows}}

    def _awattar(self) -> Any:
        hour = self.now_ns // H * H - 3 * H
        rows = [
            {
                "start_timestamp": (hour + index * H) // 1_000_000,
                "end_timestamp": (hour + (index + 1) * H) // 1_000_000,
                "marketprice": value,
                "unit": "Eur/MWh",
            }
            for index, value in enumerate(self.values)
        ]
        return {"object": "list", "data": rows, "url": "/de/v1/marketdata"}

    def _entsoe(self, asked: Asked) -> tuple[int, Any]:
        if asked.headers.get("security_token") != KEY:
            return 401, b"<html>Unauthorized</html>"
        request = ET.fromstring(asked.body)
        pairs = {}
        for component in request:
            if component.tag.endswith("AttributeInstanceComponent"):
                name, value = (child.text or "" for child in component)
                pairs[name] = value
        if pairs.get("DocumentType") != "A44":
            return 400, acknowledgement("999", "The DocumentType is not supported")
        start = self.now_ns // H * H - 3 * H
        points = [(index + 1, value) for index, value in enumerate(self.values)]
        return 200, publication(pairs["In_Domain"], [(start, "PT60M", len(points), points)])


def publication(
    domain: str,
    periods: list[tuple[int, str, int, list[tuple[int, float]]]],
    *,
    sequence: str | None = "1",
    currency: str = "EUR",
    more: bytes = b"",
) -> bytes:
    """A Publication_MarketDocument; a period is start, resolution, number of positions and the points that are told."""
    lengths = {"PT15M": 900 * S, "PT30M": HALF_H, "PT60M": H}
    series = []
    for start, resolution, count, points in periods:
        told = "".join(
            f"<Point><position>{position}</position><price.amount>{price}</price.amount></Point>"
            for position, price in points
        )
        place = "classificationSequence_AttributeInstanceComponent.position"
        series.append(
            "<TimeSeries><mRID>1</mRID><businessType>A62</businessType>"
            f'<in_Domain.mRID codingScheme="A01">{domain}</in_Domain.mRID>'
            f'<out_Domain.mRID codingScheme="A01">{domain}</out_Domain.mRID>'
            f"<currency_Unit.name>{currency}</currency_Unit.name><price_Measure_Unit.name>MWH</price_Measure_Unit.name>"
            + (f"<{place}>{sequence}</{place}>" if sequence else "")
            + "<curveType>A03</curveType><Period><timeInterval>"
            f"<start>{iso_minute(start)}</start><end>{iso_minute(start + count * lengths[resolution])}</end>"
            f"</timeInterval><resolution>{resolution}</resolution>{told}</Period></TimeSeries>"
        )
    return (
        (
            f'<?xml version="1.0" encoding="utf-8"?><Publication_MarketDocument xmlns="{PUBLICATION}">'
            f"<mRID>1</mRID><type>A44</type>{''.join(series)}"
        ).encode()
        + more
        + b"</Publication_MarketDocument>"
    )


def acknowledgement(code: str, text: str) -> bytes:
    return (
        f'<?xml version="1.0" encoding="utf-8"?><Acknowledgement_MarketDocument xmlns="{ACKNOWLEDGEMENT}">'
        f"<mRID>1</mRID><Reason><code>{code}</code><text>{text}</text></Reason></Acknowledgement_MarketDocument>"
    ).encode()


def iso(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns // S, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def iso_offset(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns // S, timezone.utc).strftime("%Y-%m-%dT%H:%M:%S+00:00")


def iso_minute(wall_ns: int) -> str:
    return datetime.fromtimestamp(wall_ns // S, timezone.utc).strftime("%Y-%m-%dT%H:%MZ")


def ns(text: str) -> int:
    return int(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp()) * S


@contextmanager
def serving(now_ns: int) -> Iterator[SignalServer]:
    server = SignalServer(now_ns)
    try:
        yield server
    finally:
        server.stop()
