"""The ``[tao_flows]`` section of Airflow's configuration, as a layer of tao-flows' own."""

from __future__ import annotations

from airflow_plugin.provider_info import OPTIONS, SECTION


def airflow_settings() -> dict[str, object]:
    """What Airflow's configuration sets, for ``load_config(engine=..., engine_name="airflow")``.

    Options that are not set, or set to nothing, are left out. Airflow's own ways of setting them count:
    ``airflow.cfg``, ``AIRFLOW__TAO_FLOWS__*``, and for ``ledger`` also its ``_CMD`` and ``_SECRET`` forms.
    """
    from airflow.configuration import conf

    values = {name: conf.get(SECTION, name, fallback=None) for name in OPTIONS}
    return {name: value.strip() for name, value in values.items() if value and value.strip()}
