"""The link from a task to the report of its run."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from airflow.sdk import BaseOperatorLink

from gpu_fleet.core.links import report_path


class ReportLink(BaseOperatorLink):
    """'Report': the run's report, as the plugin's web application serves it.

    Airflow stores it when the task ends, whatever its end. A path without host: the UI may be reached by other names
    than ``[api] base_url``, whose path alone counts here.
    """

    name = "Report"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002
        from airflow.sdk import conf

        base = urlsplit(str(conf.get("api", "base_url", fallback="") or "")).path.rstrip("/")
        return base + report_path(ti_key.dag_id, ti_key.run_id)
