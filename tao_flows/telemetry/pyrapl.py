"""pyRAPL's sensor as a source, for those who ask for it by name; ``rapl`` reads the same counters and more.

What pyRAPL lacks shows in the figures: it does not say at what value a counter wraps, so a wrap is a reset here
and that span is unknown; its path is fixed to /sys/class/powercap; and it knows one zone a socket, so processors
with several dies a socket are refused.
"""

from __future__ import annotations

import importlib
import logging
from typing import Any, Final

from tao_flows.clock import Clock
from tao_flows.errors import SourceError
from tao_flows.telemetry.base import Domain, Reading
from tao_flows.telemetry.rapl import read_code

_KINDS: Final = (("package", "package-{}"), ("dram", "package-{}/dram"))
"""The order of pyRAPL's list: package and DRAM of socket 0, of socket 1, and so on; -1 for what is not there."""


class PyRaplSource:
    """pyRAPL's raw counters in microjoules, as an EnergySource.

    Raises:
        SourceError: PYRAPL_EXTRA_MISSING, PYRAPL_ABSENT, PYRAPL_PERMISSION or PYRAPL_BROKEN.
    """

    id = "pyrapl"
    max_interval_s = 10.0

    def __init__(self, clock: Clock) -> None:
        self._now = clock.monotonic_ns
        self._sensor: Any = _open_sensor()
        try:
            values = tuple(self._sensor.energy())
        except (OSError, ValueError) as error:
            raise SourceError("PYRAPL_BROKEN", f"pyRAPL cannot read: {error}", "use the source 'rapl'") from error
        self._places = tuple(place for place, value in enumerate(values) if value >= 0)
        self.domains = tuple(_domain(place) for place in self._places)
        self.notes: tuple[str, ...] = ()

    def read(self) -> tuple[Reading, ...]:
        """One reading a domain, in the order of ``domains``. Never raises."""
        at_ns = self._now()
        if self._sensor is None:
            return tuple(Reading(at_ns, None, "READ_CLOSED") for _ in self._places)
        try:
            values = self._sensor.energy()
        except ValueError:
            return tuple(Reading(at_ns, None, "READ_RUBBISH") for _ in self._places)
        except OSError as error:
            return tuple(Reading(at_ns, None, read_code(error)) for _ in self._places)
        return tuple(_reading(at_ns, values[place]) for place in self._places)

    def close(self) -> None:
        """Lets pyRAPL's sensor go; its files close with it. May be called twice."""
        self._sensor = None


def _reading(at_ns: int, value: float) -> Reading:
    return Reading(at_ns, int(value)) if value >= 0 else Reading(at_ns, None, "READ_RUBBISH")


def _domain(place: int) -> Domain:
    socket, which = divmod(place, len(_KINDS))
    kind, pattern = _KINDS[which]
    return Domain(
        id=pattern.format(socket),
        kind="dram" if kind == "dram" else "package",
        source=PyRaplSource.id,
        events=("RANGE_UNKNOWN",),
    )


def _open_sensor() -> Any:
    module = _import_pyrapl()
    try:
        return module.Sensor()
    except module.PyRAPLException as error:
        raise SourceError(
            "PYRAPL_ABSENT",
            "pyRAPL finds no zone for each socket under /sys/class/powercap",
            "use the source 'rapl', which reads other layouts and says what is missing",
        ) from error
    except PermissionError as error:
        raise SourceError(
            "PYRAPL_PERMISSION",
            f"energy_uj may not be read ({error.filename})",
            "run the node agent as root, or give a group read access; never run the flow as root",
        ) from error
    except (OSError, ValueError, IndexError) as error:
        raise SourceError(
            "PYRAPL_BROKEN", f"pyRAPL fails on this machine's zones: {error}", "use the source 'rapl'"
        ) from error


def _import_pyrapl() -> Any:
    # Without pymongo pyRAPL warns through the root logger on import, which would set up the application's logging.
    silencer = logging.NullHandler()
    logging.root.addHandler(silencer)
    try:
        return importlib.import_module("pyRAPL")
    except ImportError as error:
        raise SourceError(
            "PYRAPL_EXTRA_MISSING", "the source 'pyrapl' needs the extra 'pyrapl'", "pip install 'tao-flows[pyrapl]'"
        ) from error
    finally:
        logging.root.removeHandler(silencer)
