"""Which CPU this is, from /proc/cpuinfo, and how sure that is."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

Confidence = Literal["high", "medium", "low"]

_ZEN: Final = tuple(f"EPYC gen {n} (Zen{f' {n}' if n > 1 else ''})" for n in range(1, 6))

_INTEL_MODELS: Final = {
    42: "Sandy Bridge", 45: "Sandy Bridge",
    58: "Ivy Bridge", 62: "Ivy Bridge",
    60: "Haswell", 63: "Haswell", 69: "Haswell", 70: "Haswell",
    61: "Broadwell", 71: "Broadwell", 79: "Broadwell", 86: "Broadwell",
    85: "Skylake", 78: "Skylake client", 94: "Skylake client",
    142: "Coffee Lake", 158: "Coffee Lake", 165: "Coffee Lake", 166: "Coffee Lake",
    106: "Ice Lake", 108: "Ice Lake", 125: "Ice Lake", 126: "Ice Lake",
    143: "Sapphire Rapids", 207: "Emerald Rapids", 173: "Granite Rapids", 174: "Granite Rapids",
}  # fmt: skip
"""Models of Intel's family 6, as the kernel's arch/x86/include/asm/intel-family.h names them."""

_PROOFS: Final = {
    "GenuineIntel": (
        ("amx_tile", "Sapphire Rapids"),
        ("avx512_vbmi2", "Ice Lake"),
        ("avx512_vnni", "Cascade Lake"),
        ("avx512f", "Skylake"),
    ),
    "AuthenticAMD": (
        ("avx512_vp2intersect", _ZEN[4]),
        ("avx512f", _ZEN[3]),
        ("vaes", _ZEN[2]),
        ("clwb", _ZEN[1]),
        ("clzero", _ZEN[0]),
    ),
}
"""The flag that each generation brought, newest first. A hypervisor can hide a flag; it cannot invent one."""

_ORDER: Final = {
    name: rank
    for names in (
        ("Skylake", "Cascade Lake", "Ice Lake", "Sapphire Rapids", "Emerald Rapids", "Granite Rapids"),
        _ZEN,
    )
    for rank, name in enumerate(names, start=1)
}
_EMERALD_RAPIDS_L3_KIB: Final = 320 * 1024
"""The largest L3 of any Sapphire or Emerald Rapids; a larger one is a Granite Rapids."""
_ARM_PARTS: Final = {("0x41", "0xd0c"): "Neoverse N1"}
_PART_NUMBER = re.compile(r"\b\d[0-9A-Z]{3}\w?\b")


@dataclass(frozen=True, slots=True)
class CpuIdentity:
    """A CPU's microarchitecture, empty when unknown, with how it was told and how sure that is."""

    microarchitecture: str
    confidence: Confidence
    how: str
    vcpus: int
    brand: str = ""
    """The maker's name for it, empty where there is none."""


def read_cpu(proc_root: Path) -> CpuIdentity:
    """The CPU of the machine whose /proc is at ``proc_root``. Never raises."""
    try:
        text = (proc_root / "cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        return CpuIdentity("", "low", f"cpuinfo cannot be read: {error.strerror}", os.cpu_count() or 1)
    return identify(text)


def identify(cpuinfo: str) -> CpuIdentity:
    """The CPU that the text of /proc/cpuinfo describes.

    The model number decides unless the flags prove a newer generation, which happens where a hypervisor masks
    the model. Confidence is high where model and flags agree and the brand names the part, medium where the
    brand is masked or only the flags speak, and low where nothing does.
    """
    fields: dict[str, str] = {}
    vcpus = 0
    for line in cpuinfo.splitlines():
        key, _, value = line.partition(":")
        key = key.strip()
        vcpus += key == "processor"
        fields.setdefault(key, value.strip())
    microarchitecture, confidence, how = _told_by_model_or_flags(fields)
    return CpuIdentity(microarchitecture, confidence, how, vcpus or os.cpu_count() or 1, fields.get("model name", ""))


def _told_by_model_or_flags(fields: dict[str, str]) -> tuple[str, Confidence, str]:
    part = (fields.get("CPU implementer", ""), fields.get("CPU part", ""))
    if part in _ARM_PARTS:
        return _ARM_PARTS[part], "high", f"CPU part {part[1]}"
    vendor = fields.get("vendor_id", "")
    family, model = _number(fields.get("cpu family")), _number(fields.get("model"))
    flags = frozenset(fields.get("flags", "").split())
    by_model = _by_model(vendor, family, model, _number(fields.get("stepping")))
    flag, by_flags = next((proof for proof in _PROOFS.get(vendor, ()) if proof[0] in flags), ("", ""))
    shown = f"family {family} model {model}"
    if by_model and _ORDER.get(by_model, 0) >= _ORDER.get(by_flags, 0):
        brand = fields.get("model name", "").partition("@")[0]
        if _PART_NUMBER.search(brand):
            return by_model, "high", shown
        return by_model, "medium", f"{shown}, brand masked"
    if not by_flags:
        return "", "low", f"{shown} is not in the table" if vendor else "cpuinfo names no known CPU"
    l3_kib = _number(fields.get("cache size", "").removesuffix("KB")) or 0
    if by_flags == "Sapphire Rapids" and l3_kib > _EMERALD_RAPIDS_L3_KIB:
        how = f"flag {flag} (Sapphire Rapids or later) with {l3_kib // 1024} MiB of L3, {shown} being masked"
        return "Granite Rapids", "medium", how
    return by_flags, "medium", f"flag {flag} ({by_flags} or later), {shown} saying less"


def _by_model(vendor: str, family: int | None, model: int | None, stepping: int | None) -> str:
    if family is None or model is None:
        return ""
    if vendor == "GenuineIntel" and family == 6:
        if model == 85 and stepping is not None and stepping >= 5:
            return "Cascade Lake"
        return _INTEL_MODELS.get(model, "")
    if vendor != "AuthenticAMD":
        return ""
    if family == 23:
        return _ZEN[0] if model < 0x30 else _ZEN[1]
    if family == 25:
        return _ZEN[3] if 0x10 <= model <= 0x1F or 0x60 <= model <= 0x7F or 0xA0 <= model <= 0xAF else _ZEN[2]
    return _ZEN[4] if family == 26 else ""


def _number(text: str | None) -> int | None:
    text = (text or "").strip()
    return int(text) if text.isascii() and text.isdigit() else None
