"""A client of the agent's that does what it is told on stdin, one JSON object a line, and answers likewise."""

import json
import os
import socket
import sys
import threading
import time

children = []
threads = []
kept = []
connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def burn(cpu_s):
    started_s = time.thread_time()
    while time.thread_time() < started_s + cpu_s:
        pass
    return time.thread_time() - started_s


def be(uid, groups, group):
    if group is not None:
        with open(os.path.join(group, "cgroup.procs"), "w") as file:
            file.write(str(os.getpid()))
    if uid:
        os.setgroups(groups)
        os.setgid(uid)
        os.setuid(uid)
    connection.connect(sys.argv[1])
    return os.getpid()


def become(uid):
    os.setgroups([])
    os.setgid(uid)
    os.setuid(uid)
    reconnect()


def reconnect():
    global connection
    connection.close()
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.connect(sys.argv[1])


def reap(pid):
    return os.waitpid(pid, 0)[0]


def ask(message):
    connection.send(json.dumps(message).encode())
    return json.loads(connection.recv(1 << 17) or '"the agent hung up"')


def send(messages):
    for message in messages:
        connection.send(json.dumps(message).encode())


def receive():
    return [time.monotonic(), json.loads(connection.recv(1 << 17))]


def spawn(cpu_s):
    """A child that waits to be told, uses CPU, and waits for the end of its parent."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        for end in (1, writing, *children):
            os.close(end)
        os.read(reading, 1)
        burn(cpu_s)
        os.read(reading, 1)
        os._exit(0)
    os.close(reading)
    children.append(writing)
    return pid


def let_go(child):
    os.write(children[child], b"x")


def thread(cpu_s):
    """A thread that waits to be told, uses CPU, and waits for the end."""
    go, known = threading.Event(), threading.Event()
    own = {}

    def work():
        own["tid"] = threading.get_native_id()
        known.set()
        go.wait()
        own["cpu_s"] = burn(cpu_s)
        own["done"] = True
        while True:
            time.sleep(60)

    threading.Thread(target=work, daemon=True).start()
    known.wait()
    threads.append((go, own))
    return own["tid"]


def work(number):
    go, own = threads[number]
    go.set()
    while "done" not in own:
        time.sleep(0.005)
    return own["cpu_s"]


def connect_often(number):
    """What came of so many more connections, all kept open."""
    codes = {}
    for _ in range(number):
        kept.append(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        kept[-1].connect(sys.argv[1])
        try:
            kept[-1].send(b'{"op":"status","seq":1}')
            code = json.loads(kept[-1].recv(1 << 17)).get("code", "ok")
        except OSError:
            code = "AGENT_FULL"  # hung up before it could ask
        codes[code] = codes.get(code, 0) + 1
    return codes


def send_until_full(message):
    """How many messages the agent takes from one that reads no answers."""
    connection.settimeout(1)
    sent = 0
    try:
        while sent < 100_000:
            connection.send(json.dumps(message).encode())
            sent += 1
    except OSError:
        pass
    return sent


def own():
    return {"pid": os.getpid(), "tid": threading.get_native_id(), "ppid": os.getppid(), "uid": os.getuid()}


for line in sys.stdin:
    said = json.loads(line)
    print(json.dumps(globals()[said.pop("do")](**said)), flush=True)
