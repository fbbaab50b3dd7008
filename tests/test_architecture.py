"""The arrows point one way, importing is cheap, and the wheel holds what it should."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("tao_flows", "airflow_plugin", "prefect_blocks")
ENGINES = {"airflow", "prefect", "prefect_dask", "dask", "distributed"}
HEAVY = {
    "airflow", "asyncio", "cryptography", "matplotlib", "numpy", "pandas", "prefect", "psycopg", "pydantic", "pynvml",
    "rfc8785", "rich", "scipy", "sqlalchemy", "typer", "waitress",
}  # fmt: skip

# Each floor of tao_flows imports only floors above it in this list: a joule's way, from the ground to what people see.
FLOORS = (
    {"errors", "lazily"},
    {"tomlfile", "units"},
    {"clock", "redact"},
    {"budget", "deadline", "figures", "signals"},
    {"budget_window", "partners", "records", "rules"},
    {"config", "options", "rulecheck"},
    {"controller", "relay", "telemetry"},
    {"parent", "pools"},
    {"pool_state"},
    {"ledger"},
    {
        "attribution",
        "batching",
        "calibration",
        "command",
        "engines",
        "leases",
        "profiles",
        "simulate",
        "spans",
        "waiting",
    },
    {"enginecpu", "gpu", "inversion", "node_account"},
    {"codeclock", "logline", "measurement"},
    {"meter"},
    {"agent", "gather", "ingest", "report"},
    {"governance"},
    {"admission"},
    {"federation"},
    {"runtime"},
    {"measuring"},
    {"prefect"},
    {"cli", "testing"},
)
FLOOR = {name: number for number, floor in enumerate(FLOORS) for name in floor}
ADAPTERS = {"prefect", "cli"}


def modules(package: str) -> dict[str, Path]:
    """By dotted name, the modules of one of our packages."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(path: Path) -> Iterator[str]:
    """Every dotted name a file imports, inside functions too; not what it imports for type checkers alone."""
    pending: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            # `from tao_flows import units` names a module; `from tao_flows.units import NS_PER_S` does not.
            names = (
                (f"{node.module}.{alias.name}" for alias in node.names) if node.module in PACKAGES else [node.module]
            )
            yield from (name for name in names if name)
        pending.extend(ast.iter_child_nodes(node))


def part(module: str) -> str:
    """``telemetry`` of ``tao_flows.telemetry.rapl``; empty for the package itself."""
    return module.partition(".")[2].partition(".")[0]


CORE = modules("tao_flows")


def test_every_module_of_the_core_has_its_floor() -> None:
    assert {part(module) for module in CORE} - {""} <= set(FLOOR)


def test_a_module_imports_only_floors_below_its_own() -> None:
    too_high = [
        f"{module} imports {name}"
        for module, path in CORE.items()
        for name in imported(path)
        if part(module) in FLOOR
        and name.startswith("tao_flows.")
        and part(name) != part(module)
        and FLOOR.get(part(name), -1) >= FLOOR[part(module)]
    ]
    assert not too_high


def test_the_core_imports_no_engine_and_no_adapter() -> None:
    core = {module: path for module, path in CORE.items() if part(module) not in ADAPTERS}
    tops = {module: {name.split(".")[0] for name in imported(path)} for module, path in core.items()}
    assert core
    for module, names in tops.items():
        assert not names & (ENGINES | {"airflow_plugin", "prefect_blocks"}), module


@pytest.mark.parametrize(("package", "barred"), [("airflow_plugin", "prefect"), ("prefect_blocks", "airflow")])
def test_an_engine_package_knows_nothing_of_the_other_engine(package: str, barred: str) -> None:
    files = modules(package)
    assert files
    for module, path in files.items():
        for name in imported(path):
            assert not name.startswith(barred), f"{module} imports {name}"
            assert not name.startswith(f"tao_flows.{barred}"), f"{module} imports {name}"


def test_the_airflow_package_is_empty_since_airflow_imports_it_in_every_process() -> None:
    assert (ROOT / "airflow_plugin" / "__init__.py").read_bytes() == b""


def loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    return set(run.stdout.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    loaded = loaded_by("import tao_flows")
    assert "tao_flows" in loaded
    assert not loaded & HEAVY


def test_importing_every_module_of_the_core_loads_nothing_heavy() -> None:
    core = [module for module in CORE if part(module) not in ADAPTERS]
    loaded = loaded_by(f"import {', '.join(core)}")
    assert set(core) <= loaded
    assert not loaded & HEAVY


def test_loading_the_airflow_entry_point_imports_no_engine_and_nothing_heavy() -> None:
    loaded = loaded_by("from airflow_plugin.provider_info import get_provider_info; get_provider_info()")
    assert "airflow_plugin.provider_info" in loaded
    assert not loaded & HEAVY


def repository_files() -> Iterator[Path]:
    for folder, folders, files in os.walk(ROOT):
        folders[:] = [name for name in folders if name == ".ci" or not name.startswith((".", "__pycache__"))]
        yield from (Path(folder, name) for name in files)


def test_no_file_names_a_package_index() -> None:
    index = re.compile(r"https?://[^\s\"'<>]+/simple\b|--(?:extra-)?index-url|--find-links|\b(?:extra-)?index-url *=")
    files = [path for path in repository_files() if path != Path(__file__)]
    assert ROOT / ".ci" / "run" in files
    for path in files:
        assert not index.search(path.read_text(encoding="utf-8", errors="ignore")), path


@pytest.mark.parametrize("name", ["core", "prefect", "airflow", "airflow-oldest", "bench"])
def test_constraints_are_plain_pins(name: str) -> None:
    lines = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    assert lines
    for line in lines:
        assert re.fullmatch(r"[a-z0-9.\-]+(\[[a-z0-9,\-]+\])?==[\w.+!]+( ; [\w .'=<>!()*]+)?", line), line


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    out = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(build, check=True, capture_output=True, cwd=ROOT)
    (path,) = out.glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_holds_the_three_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == set(PACKAGES)
    sources = {str(path.relative_to(ROOT)) for package in PACKAGES for path in modules(package).values()}
    assert {name for name in wheel.namelist() if name.endswith(".py")} == sources
    assert wheel.read("airflow_plugin/__init__.py") == b""
    assert {f"{package}/py.typed" for package in PACKAGES} <= set(wheel.namelist())
    assert "tao_flows/telemetry/taskcpu.bpf.o" in wheel.namelist()
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_the_wheel_declares_its_command_and_its_entry_points(wheel: zipfile.ZipFile) -> None:
    (path,) = [name for name in wheel.namelist() if name.endswith("entry_points.txt")]
    declared = ConfigParser()
    declared.read_string(wheel.read(path).decode())
    assert {section: dict(declared[section]) for section in declared.sections()} == {
        "console_scripts": {"tao-flows": "tao_flows.cli:main"},
        "prefect.collections": {
            "prefect_blocks": "prefect_blocks",
            "tao_flows_workers": "tao_flows.prefect.collection",
        },
        "prefect.plugins": {"tao_flows": "tao_flows.prefect.observe"},
        "airflow.plugins": {"tao_flows": "airflow_plugin.plugin:TaoPlugin"},
        "airflow.policy": {"tao_flows": "airflow_plugin.policy"},
        "apache_airflow_provider": {"provider_info": "airflow_plugin.provider_info:get_provider_info"},
    }


def test_the_base_install_needs_only_what_the_command_line_needs(wheel: zipfile.ZipFile) -> None:
    (path,) = [name for name in wheel.namelist() if name.endswith("/METADATA")]
    needs = re.findall(r"^Requires-Dist: (.*)$", wheel.read(path).decode(), re.MULTILINE)
    base = {re.match(r"[\w-]+", need)[0] for need in needs if "extra ==" not in need}  # type: ignore[index]
    assert base == {"cryptography", "rfc8785", "rich", "tomli", "typer"}
