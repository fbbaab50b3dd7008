"""Nonsense, by whoever may connect: the agent lives and serves those who make sense."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from agent_support import Agent, Client, assert_sums
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tao_flows.agent import wire
from tao_flows.errors import InputError

leaves = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=20),
    st.sampled_from([2**63, -1, 10**400, "\0"]),
)
values = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4))
names = ("op", "seq", "v", "role", "kind", "label", "pid", "tid", "window", "token", "cpu_ns", "keep")
known = {
    "op": st.sampled_from(["hello", "begin", "end", "status"]),
    "seq": st.integers(0, 9),
    "v": st.just(1),
    "role": st.sampled_from(["engine", "tool", "none"]),
    "kind": st.sampled_from(["command", "thread", "steps", "process", "self"]),
    "label": st.text(max_size=300),
    "pid": st.sampled_from([1, os.getpid(), 2**31]),
    "tid": st.sampled_from([1, os.getpid(), 2**31]),
    "window": st.text(max_size=8),
    "token": st.text(max_size=8),
    "cpu_ns": st.integers(-1, 2**64),
    "keep": st.booleans(),
}
requests = st.fixed_dictionaries({}, optional={name: st.one_of(known[name], known[name], values) for name in names})
messages = st.one_of(
    st.binary(max_size=200),
    requests.map(lambda request: json.dumps(request).encode()),
    st.builds(lambda raw, cut: raw[:cut], requests.map(lambda each: json.dumps(each).encode()), st.integers(0, 90)),
    values.map(lambda value: json.dumps(value).encode()),
)
NASTY = [
    b"\0",
    b"\0" * 4_096,
    b"{}",
    b"[]",
    b"null",
    b"NaN",
    b'{"op":"hello","seq":NaN,"v":1,"role":"none"}',
    b'{"op":"hello","seq":1e999,"v":1,"role":"none"}',
    b'{"op":"hello","seq":1,"v":' + b"9" * 4_000 + b',"role":"none"}',
    b'{"op":"hello","seq":-1,"v":1,"role":"none"}',
    b'{"op":"hello","seq":true,"v":1,"role":"none"}',
    b'{"op":"\\ud800","seq":1}',
    b'{"op":"begin","seq":1,"kind":"\\ud800"}',
    b'{"op":"begin","seq":1,"kind":"thread","label":"\\ud800","tid":1}',
    b'{"op":"end","seq":1,"window":"\\ud800","token":"\\ud800"}',
    b'{"op":["begin"],"seq":1}',
    b'{"seq":1,"op":' + b"[" * 900 + b"]" * 900 + b"}",
    b"[" * 4_000,
    b'{"a":' * 800 + b"1" + b"}" * 800,
    b"x" * 5_000,
    b'{"op":"status","seq":1,"pad":"' + b"x" * 4_066 + b'"}',
    b"\xef\xbb\xbf{}",
    '{"op":"status","seq":1}'.encode("utf-16"),
]


@contextlib.contextmanager
def raw(agent: Agent) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as connection:
        connection.settimeout(10)
        connection.connect(str(agent.socket))
        yield connection


def tell(connection: socket.socket, message: bytes) -> dict[str, Any] | None:
    """The answer; None when it hangs up."""
    try:
        connection.send(message)
        answer = connection.recv(1 << 17)
    except (BrokenPipeError, ConnectionResetError):
        return None
    return json.loads(answer) if answer else None


def understood(message: bytes) -> bool:
    """Whether a request is understood; else there is a reason that can be sent."""
    try:
        wire.parse_request(message)
    except InputError as error:
        answer = wire.encode(wire.failure(0, error.code, error.summary, error.remedy))
        return error.code != "BAD_MESSAGE" or len(answer) > wire.MAX_ANSWER_BYTES
    return True


@given(messages)
@settings(max_examples=400)
def test_a_request_is_understood_or_refused_with_the_reason(message):
    # Anything else that is raised fails here.
    assert understood(message) in {True, False}


@pytest.mark.parametrize("message", NASTY[:10], ids=range(10))
def test_a_nasty_request_is_refused_with_the_reason(message):
    assert not understood(message)


def test_nasty_requests_are_answered_and_the_agent_lives(agent):
    for message in NASTY:
        with raw(agent) as connection:
            for _ in range(3):
                answer = tell(connection, message)
                assert answer is None or "ok" in answer
    agent.assert_well()


@given(st.lists(messages, min_size=1, max_size=30))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_sent_the_agent_answers_it_and_serves_others(agent, sent):
    tid = threading.get_native_id()
    with raw(agent) as connection, Client(agent.socket) as good:
        for message in sent:
            if tell(connection, message) is None:
                break
        assert_sums(good.end(good.begin("thread", tid=tid)))
    agent.assert_well()


def test_who_talks_nonsense_for_long_is_left_alone(agent):
    with raw(agent) as connection:
        answers = [tell(connection, b"nonsense") for _ in range(20)]
    assert answers[0]["code"] == "BAD_MESSAGE"
    assert answers[-1] is None
    agent.assert_well()


def test_messages_that_are_too_long_are_refused_and_the_next_one_is_read(agent):
    with raw(agent) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
        for size in (4_097, 5_000, 150_000):
            assert tell(connection, b'{"op":"status","seq":1,"pad":"' + b"x" * size + b'"}')["code"] == "BAD_MESSAGE"
            assert tell(connection, b'{"op":"status","seq":2}')["ok"]


def test_descriptors_that_are_sent_along_do_not_stay_with_the_agent(agent):
    eventually_many = agent.descriptors()
    with raw(agent) as connection, open(os.devnull) as file:
        for _ in range(50):
            socket.send_fds(connection, [b'{"op":"status","seq":1}'], [file.fileno()] * 50)
            assert json.loads(connection.recv(1 << 17))["ok"]
        assert agent.descriptors() <= eventually_many + 4
    agent.assert_well()


def test_clients_that_say_nothing_or_half_close_are_no_bother(agent):
    before = agent.descriptors()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(raw(agent))
            half = stack.enter_context(raw(agent))
            half.shutdown(socket.SHUT_WR)
            deaf = stack.enter_context(raw(agent))
            deaf.shutdown(socket.SHUT_RD)
            with contextlib.suppress(OSError):
                deaf.send(b'{"op":"status","seq":1}')
        agent.assert_well()
    with Client(agent.socket) as client:
        client.status()
    assert agent.descriptors() <= before + 2


def test_an_empty_message_is_a_goodbye(agent):
    with raw(agent) as connection:
        assert tell(connection, b"") is None


def test_requests_before_hello_are_refused(agent):
    with raw(agent) as connection:
        answer = tell(connection, b'{"op":"begin","seq":4,"kind":"steps","label":""}')
        assert (answer["seq"], answer["code"]) == (4, "NO_HELLO")
        answer = tell(connection, b'{"op":"end","seq":5,"window":"a","token":"b"}')
        assert (answer["seq"], answer["code"]) == (5, "UNKNOWN_WINDOW")
