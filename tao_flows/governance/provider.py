"""What only the provider of a model knows, read from a YAML file: nothing in it is checked but its form."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Final, NoReturn

from tao_flows.errors import InputError, MissingExtraError
from tao_flows.governance.amounts import UJ_PER_KWH, UJ_PER_MWH
from tao_flows.tomlfile import did_you_mean
from tao_flows.units import KWH_PER_MWH, S_PER_H

ACTIVITIES: Final = (
    "design", "data-collection", "data-preparation", "training", "fine-tuning", "validation", "deployment",
    "inference", "other",
)  # fmt: skip
"""What a run is for, in the words of CycloneDX 1.6 (energyConsumption.activity)."""
SERVING: Final = frozenset({"deployment", "inference"})
"""Activities in which no model is made."""
DATA_TYPES: Final = (
    "tabular", "audio", "boolean", "image", "video", "object", "text", "token", "word", "other",
)  # fmt: skip
"""BoAmps 1.1.0, dataset.dataType."""
SOURCES: Final = ("public", "private", "other")
"""BoAmps 1.1.0, dataset.source."""
INFRASTRUCTURES: Final = ("publicCloud", "privateCloud", "onPremise", "other")
"""BoAmps 1.1.0, infrastructure.infraType."""
_CODE: Final = "PROVIDER_INPUTS"
_MAX_BYTES: Final = 1 << 20
_MAX_TEXT: Final = 500
_SI: Final = {"": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18, "Z": 21, "Y": 24}
_QUANTITY: Final = re.compile(r"([-+]?[0-9][0-9_]*(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,3})?)\s*([A-Za-z/]*)")
_TIMES_S: Final = {"s": 1, "min": 60, "h": S_PER_H, "d": 24 * S_PER_H}
_ENERGIES_UJ: Final = {"kWh": UJ_PER_KWH, "MWh": UJ_PER_MWH, "GWh": UJ_PER_MWH * KWH_PER_MWH}
_FLOP: Final = {f"{prefix}FLOP": 10**power for prefix, power in _SI.items()}
_FLOP_PER_S: Final = {f"{prefix}{unit}": 10**power for prefix, power in _SI.items() for unit in ("FLOP/s", "FLOPS")}


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What the model is."""

    id: str = ""
    """As runs name it: ``model_id``."""
    name: str = ""
    version: str = ""
    task: str = ""
    architecture: str = ""
    licence: str = ""
    parameters: Decimal | None = None


@dataclass(frozen=True, slots=True)
class HardwareCompute:
    """Training compute as N * L * H * U (Commission guidelines on general-purpose AI models, Annex A)."""

    units: Decimal
    """N."""
    peak_flop_per_s: Decimal
    """H, of one unit, at the precision that was used."""
    utilisation: Decimal
    """U: the part of the peak that was reached, above 0 and at most 1. Not the busy time that NVML reports."""
    time_s: Decimal | None = None
    """L; None: the recorded time of the runs."""


@dataclass(frozen=True, slots=True)
class DataFacts:
    """One set of data that was used."""

    type: str = "other"
    items: Decimal | None = None
    source: str = ""


@dataclass(frozen=True, slots=True)
class ProviderInputs:
    """A provider's own statements on a model. Empty or None is not stated."""

    organisation: str = ""
    activity: str = ""
    """What the runs are for; empty: what each run's tag ``activity:`` says."""
    model: ModelFacts = ModelFacts()
    hardware: HardwareCompute | None = None
    tokens: Decimal | None = None
    """D in 6 * P * D: tokens, or examples, that were trained on."""
    compute_error: Decimal | None = None
    """Of the amount of computation: 0.3 is 30 % either way."""
    inference_flop: Decimal | None = None
    inference_method: str = ""
    elsewhere_uj: int | None = None
    """Energy of training that no run of a ledger recorded."""
    elsewhere_method: str = ""
    data: tuple[DataFacts, ...] = ()
    infrastructure: str = ""
    country: str = ""


def load_provider_inputs(path: Path) -> ProviderInputs:
    """The inputs in a YAML file.

    Raises:
        InputError: PROVIDER_INPUTS, the file cannot be read, or something in it is wrong; the summary says where.
        MissingExtraError: PyYAML is not installed.
    """
    try:
        import yaml  # type: ignore[import-untyped]
    except ImportError:
        raise MissingExtraError("governance", "reading provider inputs") from None
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise InputError(_CODE, f"{path}: {error.strerror}", "check the path and its permissions") from None
    if len(text) > _MAX_BYTES:
        raise InputError(_CODE, f"{path}: larger than {_MAX_BYTES:,} bytes", "give the inputs of one model")
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        said = getattr(error, "problem", None) or "it is no YAML"
        raise InputError(_CODE, f"{path}{line}: {said}", "correct the file") from None
    return ProviderInputs() if root is None else _inputs(_Place(path, "", root))


@dataclass(frozen=True, slots=True)
class _Place:
    """A node of a YAML file. It knows its line, and its text as written, so that no number becomes a float."""

    path: Path
    name: str
    node: Any

    def at(self, name: str, node: Any) -> _Place:
        return _Place(self.path, f"{self.name}: {name}" if self.name else name, node)

    def fail(self, said: str, remedy: str) -> NoReturn:
        name = f"{self.name} " if self.name else "the file "
        raise InputError(_CODE, f"{self.path}, line {self.node.start_mark.line + 1}: {name}{said}", remedy)


_Read = Callable[[_Place], Any]


def _inputs(place: _Place) -> ProviderInputs:
    found = _table(place, _ROOT)
    compute, inference, elsewhere = (found.pop(name, {}) for name in ("compute", "inference", "energy_elsewhere"))
    if "hardware" in compute and "architecture" in compute:
        place.fail("has both compute: hardware and compute: architecture", "leave one of them out")
    if "architecture" in compute and found.get("model", ModelFacts()).parameters is None:
        place.fail("has compute: architecture without model: parameters", "add them: it is 6 * parameters * tokens")
    return ProviderInputs(
        **found,
        hardware=compute.get("hardware"),
        tokens=compute.get("architecture", {}).get("tokens"),
        compute_error=compute.get("error"),
        inference_flop=inference.get("flop"),
        inference_method=inference.get("method", ""),
        elsewhere_uj=elsewhere.get("amount"),
        elsewhere_method=elsewhere.get("method", ""),
    )


def _table(place: _Place, known: Mapping[str, _Read], needed: tuple[str, ...] = ()) -> dict[str, Any]:
    if place.node.id != "mapping":
        place.fail("is no table of keys and values", f"known keys: {', '.join(known)}")
    found: dict[str, Any] = {}
    for key_node, node in place.node.value:
        key = str(key_node.value) if key_node.id == "scalar" else "a key that is no word"
        entry = place.at(key, key_node)
        if key not in known:
            entry.fail("is unknown", did_you_mean(key, known))
        if key in found:
            entry.fail("is there twice", "leave one of them out")
        found[key] = known[key](place.at(key, node))
    for key in needed:
        if key not in found:
            place.fail(f"has no {key}", f"add {key}")
    return found


def _made(make: Callable[..., Any], known: Mapping[str, _Read], needed: tuple[str, ...] = ()) -> _Read:
    return lambda place: make(**_table(place, known, needed))


def _each(read: _Read) -> _Read:
    def entries(place: _Place) -> tuple[Any, ...]:
        if place.node.id != "sequence":
            place.fail("is no list", "begin each entry with a dash")
        return tuple(read(place.at(str(number), node)) for number, node in enumerate(place.node.value, 1))

    return entries


def _scalar(place: _Place) -> str:
    if place.node.id != "scalar":
        place.fail("is a list or a table", "give one value")
    return str(place.node.value).strip()


def _text(place: _Place) -> str:
    text = _scalar(place)
    if not text or len(text) > _MAX_TEXT:
        place.fail("is empty or too long", f"give a text of 1 to {_MAX_TEXT} characters")
    return text


def _choice(place: _Place, known: tuple[str, ...]) -> str:
    text = _scalar(place)
    if text not in known:
        place.fail(f"is {text[:80]!r}, not one of {', '.join(known)}", did_you_mean(text, known))
    return text


def _quantity(place: _Place, units: Mapping[str, int], most: int | None = None) -> Decimal:
    """A number above 0 in the unit that ``units`` gives 1; the empty unit is that of a number alone."""
    text = _scalar(place)
    remedy = f"give a number with a unit, one of {', '.join(units)}" if "" not in units else "give a number, no unit"
    match = _QUANTITY.fullmatch(text)
    if match is None:
        place.fail(f"is {text[:80]!r}, which is no number", remedy)
    number, unit = match.groups()
    if unit not in units:
        place.fail(
            f"is {text[:80]!r}, {f'whose unit {unit!r} is not known here' if unit else 'without a unit'}", remedy
        )
    value = Decimal(number) * units[unit]
    if value <= 0 or (most is not None and value > most):
        bounds = "above 0" if most is None else f"above 0 and at most {most}"
        place.fail(f"is {text[:80]!r}, which is not {bounds}", f"give a number {bounds}")
    return value


def _energy(place: _Place) -> int:
    return round(_quantity(place, _ENERGIES_UJ))


def _hardware(units: Decimal, peak: Decimal, utilisation: Decimal, time: Decimal | None = None) -> HardwareCompute:
    return HardwareCompute(units, peak, utilisation, time)


_NUMBER: Final = {"": 1}
_count: Final = partial(_quantity, units=_NUMBER)
_share: Final = partial(_quantity, units=_NUMBER, most=1)
_HARDWARE: Final[Mapping[str, _Read]] = {
    "units": _count,
    "peak": partial(_quantity, units=_FLOP_PER_S),
    "utilisation": _share,
    "time": partial(_quantity, units=_TIMES_S),
}
_MODEL: Final[Mapping[str, _Read]] = {
    **dict.fromkeys(("id", "name", "version", "task", "architecture", "licence"), _text),
    "parameters": _count,
}
_DATA: Final[Mapping[str, _Read]] = {
    "type": partial(_choice, known=DATA_TYPES), "items": _count, "source": partial(_choice, known=SOURCES)
}  # fmt: skip
_COMPUTE: Final[Mapping[str, _Read]] = {
    "hardware": _made(_hardware, _HARDWARE, ("units", "peak", "utilisation")),
    "architecture": _made(dict, {"tokens": _count}, ("tokens",)),
    "error": _share,
}
_INFERENCE: Final[Mapping[str, _Read]] = {"flop": partial(_quantity, units=_FLOP), "method": _text}
_ELSEWHERE: Final[Mapping[str, _Read]] = {"amount": _energy, "method": _text}
_ROOT: Final[Mapping[str, _Read]] = {
    "organisation": _text,
    "activity": partial(_choice, known=ACTIVITIES),
    "model": _made(ModelFacts, _MODEL),
    "compute": _made(dict, _COMPUTE),
    "inference": _made(dict, _INFERENCE, ("flop", "method")),
    "energy_elsewhere": _made(dict, _ELSEWHERE, ("amount", "method")),
    "data": _each(_made(DataFacts, _DATA, ("type",))),
    "infrastructure": partial(_choice, known=INFRASTRUCTURES),
    "country": _text,
}
