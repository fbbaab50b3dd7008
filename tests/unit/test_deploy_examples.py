"""What is shipped to run the agent: each file is read by the program it is for, or by its schema."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tao_flows.agent.metrics import serve
from tao_flows.agent.snapshot import DomainSnapshot, NodeSnapshot
from tao_flows.clock import SystemClock
from tao_flows.pools import load_pools
from tao_flows.telemetry.rapl import RaplSource

EXAMPLES = Path(__file__).parents[2] / "examples" / "agent"
CHART = EXAMPLES / "helm"
COMMAND = ["tao-flows", "agent", "--socket", "/run/tao-flows/agent.sock", "--hz", "10", "--state", "/var/lib/tao-flows"]
IMAGE = {"image": {"repository": "tao-flows-agent"}}
MONITORS = {"podMonitor": {"enabled": True}, "serviceMonitor": {"enabled": True, "labels": {"team": "energy"}}}


# -- Grafana


def expressions(board: dict[str, Any]) -> list[str]:
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]


def names(text: str) -> set[str]:
    return set(re.findall(r"\b(?:hw|tao_flows)_[a-z_]+(?=[{\[, )]|$)", re.sub(r"by \([^)]*\)|\{[^}]*\}", "", text)))


def test_every_series_that_the_dashboard_asks_for_is_one_that_the_agent_serves():
    pytest.importorskip("prometheus_client", reason="the extra 'agent' is not installed")
    import urllib.request

    board = json.loads((EXAMPLES / "dashboard.json").read_text())
    asked = set().union(*(names(each) for each in expressions(board)))
    asked |= names(board["templating"]["list"][1]["definition"].replace("label_values(", ""))
    domains = tuple(
        DomainSnapshot(kind, kind, "rapl", counted=True, counter_uj=1, power_w=1.0) for kind in ("package", "psys")
    )
    now = NodeSnapshot("h", "1", "ebpf", 1, domains, 1, 1, 1, 1, 1, 1.0, 1.0, 1.0, incidents={"A": 1})
    server = serve(lambda: now, "", 0)
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics", timeout=10) as answer:
            served = {re.match(r"\w+", line)[0] for line in answer.read().decode().splitlines() if line[0] != "#"}
    finally:
        server.close()
    assert len(asked) > 10
    assert asked <= served


def test_the_dashboard_has_panels_that_do_not_overlap_and_one_data_source():
    board = json.loads((EXAMPLES / "dashboard.json").read_text())
    taken: set[tuple[int, int]] = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    sources = {json.dumps(panel["datasource"]) for panel in board["panels"] if panel["type"] != "row"}
    assert len(sources) == 1


# -- systemd


def unit() -> dict[str, list[str]]:
    """The unit's settings by name, in order."""
    settings: dict[str, list[str]] = {}
    for line in (EXAMPLES / "tao-flows-agent.service").read_text().splitlines():
        if "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            settings.setdefault(name, []).append(value)
    return settings


def systemd(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed: apt-get install systemd")
    return path


@pytest.fixture
def unit_here(tmp_path: Path) -> Path:
    """The unit, with a program that exists on this machine."""
    path = tmp_path / "tao-flows-agent.service"
    text = (EXAMPLES / "tao-flows-agent.service").read_text()
    path.write_text(text.replace("/opt/tao-flows/bin/tao-flows", sys.executable))
    return path


def test_systemd_finds_nothing_wrong_with_the_unit(unit_here):
    verify = [systemd("systemd-analyze"), "verify", "--man=no", str(unit_here)]
    run = subprocess.run(verify, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert unit_here.name not in run.stderr


def test_systemd_rates_the_units_exposure_as_low(unit_here):
    security = [systemd("systemd-analyze"), "security", "--offline=yes", "--threshold=25", "--no-pager", str(unit_here)]
    run = subprocess.run(security, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-200:]


def test_the_unit_grants_two_capabilities_and_keeps_others_out_of_the_socket_directory():
    has = unit()
    assert has["AmbientCapabilities"] == has["CapabilityBoundingSet"] == ["CAP_BPF CAP_PERFMON"]
    assert has["NoNewPrivileges"] == ["yes"]
    assert (has["RuntimeDirectory"], has["RuntimeDirectoryMode"]) == (["tao-flows"], ["0755"])
    assert has["StateDirectoryMode"] == ["0755"]
    assert has["ExecStart"][0].split()[1:] == COMMAND[1:]
    assert not has["ExecStart"][0].startswith(("+", "!"))


@pytest.mark.root
def test_the_rules_make_the_user_and_let_its_group_alone_read_the_counters(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can give files to another user")
    zone = tmp_path / "sys/devices/virtual/powercap/intel-rapl/intel-rapl:0"
    part = zone / "intel-rapl:0:0"
    part.mkdir(parents=True)
    for folder in (zone, part):
        (folder / "energy_uj").write_text("1\n")
        (folder / "energy_uj").chmod(0o400)
        (folder / "name").write_text("package-0\n")
        (folder / "name").chmod(0o444)
    (tmp_path / "etc").mkdir()
    root = f"--root={tmp_path}"
    subprocess.run([systemd("systemd-sysusers"), root, EXAMPLES / "tao-flows.sysusers.conf"], check=True)
    make = [systemd("systemd-tmpfiles"), "--create", root, EXAMPLES / "tao-flows.tmpfiles.conf"]
    subprocess.run(make, check=True)
    (group,) = re.findall(r"^tao-flows:[^:]*:(\d+)", (tmp_path / "etc/group").read_text(), re.MULTILINE)
    for folder in (zone, part):
        now = (folder / "energy_uj").stat()
        assert (now.st_uid, now.st_gid, now.st_mode & 0o777) == (0, int(group), 0o440)
        assert (folder / "name").stat().st_mode & 0o777 == 0o444


# -- Kubernetes


def documents(text: str) -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    return [each for each in yaml.safe_load_all(text) if each]


def assert_valid(document: dict[str, Any], version: str) -> None:
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    assert kubernetes_validate.validate(document, version, strict=True)


def manifests(name: str) -> list[dict[str, Any]]:
    return documents((EXAMPLES / name).read_text())


def agent(rendered: list[dict[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The agent's pod and its one container."""
    (daemon,) = [each for each in rendered if each["kind"] == "DaemonSet"]
    pod = daemon["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    return pod, container


@pytest.mark.parametrize("version", ["1.25", "1.37"])
@pytest.mark.parametrize("name", ["kubernetes.yaml", "worker-pod.yaml"])
def test_the_manifests_hold_to_the_schema_of_kubernetes(name, version):
    read = manifests(name)
    assert read
    for document in read:
        assert_valid(document, version)


def test_the_schema_would_find_a_misspelt_field():
    kubernetes_validate = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    (pod,) = manifests("worker-pod.yaml")
    pod["spec"]["hostPid"] = True
    with pytest.raises(kubernetes_validate.ValidationError, match="hostPid"):
        kubernetes_validate.validate(pod, "1.37", strict=True)


def test_the_agent_of_the_manifest_has_no_more_than_it_needs():
    pod, container = agent(manifests("kubernetes.yaml"))
    assert container["command"] + container["args"] == COMMAND
    rights = container["securityContext"]
    assert rights["capabilities"] == {"drop": ["ALL"], "add": ["BPF", "PERFMON"]}
    assert (rights["privileged"], rights["allowPrivilegeEscalation"], rights["readOnlyRootFilesystem"]) == (
        False, False, True,
    )  # fmt: skip
    assert pod["hostPID"]
    assert not {"hostNetwork", "hostIPC"} & set(pod)
    assert not pod["automountServiceAccountToken"]
    writable = {mount["mountPath"] for mount in container["volumeMounts"] if not mount.get("readOnly")}
    assert writable == {"/run/tao-flows", "/var/lib/tao-flows"}


def test_a_metered_pod_mounts_the_directory_of_the_agents_socket_and_has_no_privilege():
    (worker,) = manifests("worker-pod.yaml")
    pod, _ = agent(manifests("kubernetes.yaml"))
    shared = {volume["hostPath"]["path"] for volume in worker["spec"]["volumes"]}
    assert shared == {"/run/tao-flows"}
    assert shared <= {volume["hostPath"]["path"] for volume in pod["volumes"]}
    (container,) = worker["spec"]["containers"]
    assert container["volumeMounts"][0]["readOnly"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_the_energy_counters_are_found_through_the_mounts_of_the_manifest(tmp_path):
    host, inside = tmp_path / "node", tmp_path / "container"
    zone = host / "sys/devices/virtual/powercap/intel-rapl/intel-rapl:0"
    zone.mkdir(parents=True)
    for name, text in {"name": "package-0", "energy_uj": "4711", "max_energy_range_uj": "262143328850"}.items():
        (zone / name).write_text(f"{text}\n")
    (host / "sys/class/powercap").mkdir(parents=True)
    link = "../../devices/virtual/powercap/intel-rapl/intel-rapl:0"
    (host / "sys/class/powercap/intel-rapl:0").symlink_to(link)
    pod, container = agent(manifests("kubernetes.yaml"))
    paths = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    for mount in container["volumeMounts"]:
        source = Path(f"{host}{paths[mount['name']]}")
        if source.exists():  # a bind mount keeps links as they are
            shutil.copytree(source, f"{inside}{mount['mountPath']}", symlinks=True)
    (root,) = [each["value"] for each in container["env"] if each["name"] == "TAO_FLOWS_POWERCAP_ROOT"]
    source = RaplSource(Path(f"{inside}{root}"), SystemClock())
    (reading,) = source.read()
    source.close()
    assert reading.raw_uj == 4711


@pytest.mark.parametrize("probe", ["startupProbe", "readinessProbe", "livenessProbe"])
def test_a_probe_is_true_while_someone_listens_and_false_when_no_one_does(tmp_path, probe):
    import socket

    _, container = agent(manifests("kubernetes.yaml"))
    python, flags, code = container[probe]["exec"]["command"]
    path = tmp_path / "agent.sock"
    command = [shutil.which(python) or sys.executable, flags, code.replace("/run/tao-flows/agent.sock", str(path))]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(path))
        listener.listen()
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode != 0  # a stale socket


# -- Helm


def helm(what: str, values: dict[str, Any]) -> Any:
    """What Helm itself answers. It is a Go library, and runs in a process of its own."""
    pytest.importorskip("helm_python", reason="helm-python-sdk is not installed")
    code = """
import helm_python, json, sys
what, chart, values = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
if what == "lint":
    print(json.dumps(helm_python.lint(chart, values, strict=True)))
else:
    with helm_python.Chart.load(chart) as loaded:
        print(json.dumps(loaded.render(values, name="tao", namespace="energy")))
"""
    run = subprocess.run(
        [sys.executable, "-c", code, what, str(CHART), json.dumps(values)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def rendered(**values: Any) -> list[dict[str, Any]]:
    return [each for text in helm("render", {**IMAGE, **values}).values() for each in documents(text)]


def test_helm_finds_nothing_wrong_with_the_chart():
    report = helm("lint", IMAGE)
    assert report["total_charts_linted"] == 1
    assert not report["errors"]
    assert [each for each in report["messages"] if each["severity"] > 1] == []


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"bpf": {"enabled": False}},
        {"metrics": {"enabled": True, "port": 9999, **MONITORS}},
        {
            "nvidia": {"enabled": True},
            "nodeSelector": {"gpu": "yes"},
            "affinity": {"nodeAffinity": {}},
            "priorityClassName": "system-node-critical",
            "podAnnotations": {"a": "b"},
            "imagePullSecrets": [{"name": "pull"}],
        },
        {"resources": {}, "tolerations": []},
    ],
)
def test_what_helm_renders_holds_to_the_schema_of_kubernetes(values):
    made = rendered(**values)
    assert made
    for document in made:
        if not document["apiVersion"].startswith("monitoring.coreos.com/"):  # the operator's own, not Kubernetes'
            assert_valid(document, "1.25")
            assert_valid(document, "1.37")


def test_the_chart_runs_the_same_agent_as_the_manifest():
    made = rendered()
    assert [each["kind"] for each in made] == ["DaemonSet"]
    chart_pod, chart = agent(made)
    plain_pod, plain = agent(manifests("kubernetes.yaml"))
    assert chart.pop("image") == "tao-flows-agent:0.1.0"
    plain.pop("image")
    assert chart == plain
    assert {**chart_pod, "containers": []} == {**plain_pod, "containers": []}


def test_without_bpf_the_chart_grants_no_capability_at_all():
    _, container = agent(rendered(bpf={"enabled": False}))
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["args"] == [*COMMAND[2:], "--no-bpf"]


def test_metrics_are_off_and_nothing_is_scraped_unless_asked_for():
    _, container = agent(rendered(metrics={"enabled": False, **MONITORS}))
    assert "--metrics" not in container["args"]
    assert "ports" not in container


def test_a_scraped_chart_names_one_port_everywhere():
    made = rendered(metrics={"enabled": True, "port": 9999, **MONITORS})
    _, container = agent(made)
    assert container["args"][-2:] == ["--metrics", "0.0.0.0:9999"]
    assert container["ports"] == [{"name": "metrics", "containerPort": 9999}]
    kinds = {each["kind"]: each for each in made}
    assert set(kinds) == {"DaemonSet", "Service", "PodMonitor", "ServiceMonitor"}
    pods = kinds["DaemonSet"]["spec"]["template"]["metadata"]["labels"]
    assert kinds["PodMonitor"]["spec"]["selector"]["matchLabels"].items() <= pods.items()
    assert kinds["PodMonitor"]["spec"]["podMetricsEndpoints"][0]["port"] == "metrics"
    assert kinds["Service"]["spec"]["selector"].items() <= pods.items()
    service_labels = kinds["Service"]["metadata"]["labels"]
    assert kinds["ServiceMonitor"]["spec"]["selector"]["matchLabels"].items() <= service_labels.items()
    assert kinds["ServiceMonitor"]["metadata"]["labels"]["team"] == "energy"


def test_the_socket_directory_of_the_values_is_the_one_on_the_node():
    pod, _ = agent(rendered(socketDir="/var/run/energy"))
    assert "/var/run/energy" in {volume["hostPath"]["path"] for volume in pod["volumes"]}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"image": {"repository": ""}}, "build an image"),
        ({"hz": "ten"}, "want number"),
        ({"hz": 0}, "hz"),
        ({"socketDir": "run/tao-flows"}, "socketDir"),
        ({"metrics": {"enable": True}}, "not allowed"),
        ({"metric": {}}, "not allowed"),
    ],
)
def test_values_that_make_no_sense_are_refused(values, why):
    with pytest.raises(AssertionError, match=why):
        helm("render", {**IMAGE, **values})


def test_every_flag_in_these_files_is_one_that_the_command_has():
    said = subprocess.run(
        [sys.executable, "-c", "from tao_flows.cli import main; main()", "agent", "--help"],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    given = {*COMMAND, *agent(rendered(bpf={"enabled": False}, metrics={"enabled": True}))[1]["args"]}
    flags = {each for each in given if each.startswith("--")}
    assert flags == {"--socket", "--hz", "--state", "--metrics", "--no-bpf"}
    assert flags <= set(re.findall(r"--[a-z-]+", said.stdout))


# -- the text beside them


def test_the_pools_in_the_readme_can_be_read(tmp_path):
    (text,) = re.findall(r"```toml\n(.*?)```", (EXAMPLES / "README.md").read_text(), re.DOTALL)
    path = tmp_path / "pools.toml"
    path.write_text(text)
    pools = load_pools(path)
    assert [pool.pool_id for pool in pools] == ["gpu-nodes", "cpu-nodes", "rack-7"]
    assert all(pool.power_from is not None for pool in pools)


def test_every_file_of_the_folder_is_named_in_its_readme():
    text = (EXAMPLES / "README.md").read_text()
    files = {path.name for path in EXAMPLES.iterdir()} - {"README.md"}
    assert {name for name in files if name not in text} == set()
