"""Registers the package with Airflow: registration only, everything else lives in ``gpu_fleet``.

``plugins/.airflowignore`` keeps Airflow's plugin loader out of the package itself: it would run every file there under
its bare name and so replace modules such as ``kubernetes``.
"""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin

from gpu_fleet.core.links import PREFIX
from gpu_fleet.hooks.preload import PreloadListener
from gpu_fleet.operators.links import ReportLink
from gpu_fleet.ui.lazy import LazyApp


class GpuFleetPlugin(AirflowPlugin):
    """The one plugin of the package."""

    name = "gpu_fleet"
    listeners = (PreloadListener(),)
    operator_extra_links = (ReportLink(),)
    fastapi_apps = ({"app": LazyApp(), "url_prefix": PREFIX, "name": "gpu-fleet reports"},)
