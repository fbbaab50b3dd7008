"""The estimate, and the CPU it is made for."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tao_flows.telemetry.cpuinfo import CpuIdentity, identify
from tao_flows.telemetry.estimate import Estimator

AVX512 = "fpu avx avx2 clwb vaes avx512f avx512_vnni avx512_vbmi2"


def cpuinfo(vendor: str, family: int, model: int, **more: str) -> str:
    fields = {"vendor_id": vendor, "cpu family": str(family), "model": str(model)}
    fields |= {"model name": "", "stepping": "1", "flags": "fpu"} | {k.replace("_", " "): v for k, v in more.items()}
    block = "".join(f"{key}\t: {value}\n" for key, value in fields.items())
    return "".join(f"processor\t: {number}\n{block}\n" for number in range(4))


def intel(model: int, brand: str = "Intel(R) Xeon(R) Platinum 8375C CPU @ 2.90GHz", **more: str) -> CpuIdentity:
    return identify(cpuinfo("GenuineIntel", 6, model, **{"model_name": brand, **more}))


def amd(family: int, model: int, brand: str = "AMD EPYC 7R13 Processor", **more: str) -> CpuIdentity:
    return identify(cpuinfo("AuthenticAMD", family, model, **{"model_name": brand, **more}))


@pytest.mark.parametrize(
    ("cpu", "name"),
    [
        (intel(63), "Haswell"),
        (intel(85, stepping="4", flags="fpu avx512f"), "Skylake"),
        (intel(85, stepping="7", flags="fpu avx512f avx512_vnni"), "Cascade Lake"),
        (intel(106, flags=AVX512), "Ice Lake"),
        (intel(143, flags=f"{AVX512} amx_tile"), "Sapphire Rapids"),
        (intel(173, flags=f"{AVX512} amx_tile"), "Granite Rapids"),
        (amd(23, 0x01), "EPYC gen 1 (Zen)"),
        (amd(23, 0x31), "EPYC gen 2 (Zen 2)"),
        (amd(25, 0x01), "EPYC gen 3 (Zen 3)"),
        (amd(25, 0x11, flags=AVX512), "EPYC gen 4 (Zen 4)"),
        (amd(25, 0xA0, flags=AVX512), "EPYC gen 4 (Zen 4)"),
        (amd(26, 0x02, flags=AVX512), "EPYC gen 5 (Zen 5)"),
        (identify("processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0c\n"), "Neoverse N1"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_cpu_that_names_itself_is_known_with_high_confidence(cpu: CpuIdentity, name: str) -> None:
    assert (cpu.microarchitecture, cpu.confidence) == (name, "high")


@pytest.mark.parametrize("brand", ["AMD EPYC", "AMD EPYC Processor", "", "AMD EPYC Processor @ 2.90GHz"])
def test_a_masked_brand_lowers_the_confidence_to_medium(brand: str) -> None:
    cpu = amd(25, 17, brand, flags=AVX512)
    assert (cpu.microarchitecture, cpu.confidence) == ("EPYC gen 4 (Zen 4)", "medium")
    assert "brand masked" in cpu.how


def test_flags_that_the_shown_model_cannot_have_speak_instead_of_it() -> None:
    cpu = intel(167, "Intel Xeon Processor", flags=f"{AVX512} amx_tile", cache_size="107520 KB")
    assert (cpu.microarchitecture, cpu.confidence) == ("Sapphire Rapids", "medium")
    assert "amx_tile" in cpu.how
    older = intel(85, "Intel Xeon Processor (Skylake)", flags=f"{AVX512} amx_tile")
    assert (older.microarchitecture, older.confidence) == ("Sapphire Rapids", "medium")


def test_a_cache_larger_than_a_generation_ever_had_tells_the_next() -> None:
    cpu = intel(167, "Intel Xeon Processor", flags=f"{AVX512} amx_tile", cache_size="491520 KB")
    assert (cpu.microarchitecture, cpu.confidence) == ("Granite Rapids", "medium")
    assert "Sapphire Rapids or later" in cpu.how
    assert "480 MiB" in cpu.how


def test_a_flag_hidden_by_the_hypervisor_does_not_contradict_the_model() -> None:
    assert intel(143, flags="fpu avx512f").microarchitecture == "Sapphire Rapids"


@pytest.mark.parametrize(
    "cpu",
    [
        intel(200),
        identify(cpuinfo("RiscVInc", 1, 2)),
        identify(""),
        identify("processor : zero\nmodel : x²\ncpu family : ²\nvendor_id : GenuineIntel\n"),
        identify("processor : 0\nCPU implementer : 0x41\nCPU part : 0xfff\n"),
    ],
    ids=["newer model", "other vendor", "empty", "rubbish", "other Arm"],
)
def test_an_unknown_cpu_gets_the_mean_and_low_confidence(cpu: CpuIdentity) -> None:
    assert (cpu.microarchitecture, cpu.confidence) == ("", "low")
    assert cpu.how


def test_vcpus_are_counted_and_never_none(tmp_path: Path) -> None:
    assert intel(63).vcpus == 4
    assert identify("").vcpus == os.cpu_count()


def test_the_estimator_of_a_host_takes_that_cpus_coefficients(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo("GenuineIntel", 6, 106, model_name="Xeon 8375C", flags=AVX512))
    estimator = Estimator.of_host(tmp_path)
    assert estimator.vcpus == 4
    assert estimator.active_uj(1.0) == 2_990_000  # 3.76 - 0.77 W
    assert estimator.idle_uj(1.0) == 4 * 770_000
    assert estimator.memory_uj(1024**3, 1.0) == 392_000


def test_the_model_line_names_version_coefficients_cpu_confidence_and_source(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text(cpuinfo("GenuineIntel", 6, 106, model_name="Xeon", flags=AVX512))
    model = Estimator.of_host(tmp_path).model
    assert "\n" not in model
    for part in ("vcpu-minmax-memory/1", "Ice Lake", "0.77 to 3.76 W", "0.392 W per GiB", "medium", "SPECpower"):
        assert part in model


def test_a_host_without_cpuinfo_is_estimated_with_the_mean(tmp_path: Path) -> None:
    estimator = Estimator.of_host(tmp_path / "nowhere")
    assert estimator.cpu.confidence == "low"
    assert estimator.active_uj(1.0) == 2_760_000  # 3.5 - 0.74 W
    assert "unknown CPU" in estimator.model


def test_the_interval_is_half_to_twice_the_figure() -> None:
    assert (Estimator.LOW, Estimator.HIGH) == (0.5, 2.0)


cpus = st.sampled_from([intel(63), intel(106), amd(25, 1), identify("")])
seconds = st.floats(0, 1e7)


@given(cpu=cpus, one_s=seconds, other_s=seconds, resident_bytes=st.integers(0, 2**44))
def test_an_estimate_is_never_negative_grows_with_time_and_adds_up(
    cpu: CpuIdentity, one_s: float, other_s: float, resident_bytes: int
) -> None:
    estimator = Estimator(cpu, 0.7, 3.1)
    for figure in (
        estimator.active_uj,
        estimator.idle_uj,
        lambda duration_s: estimator.memory_uj(resident_bytes, duration_s),
    ):
        one_uj, other_uj, both_uj = figure(one_s), figure(other_s), figure(one_s + other_s)
        assert 0 <= one_uj <= both_uj
        assert abs(one_uj + other_uj - both_uj) <= 2 + both_uj * 1e-12
