"""The tests neither read nor write the Airflow of whoever runs them, which is in ``~/airflow`` unless it is told."""

from __future__ import annotations

import os
from pathlib import Path

#: Set before anything imports Airflow, which makes this folder then. A stack, or a process of a test, has its own.
AIRFLOW_HOME = Path(__file__).resolve().parents[1] / "build" / "tests" / "airflow"
os.environ["AIRFLOW_HOME"] = str(AIRFLOW_HOME)

# The tests' own notifiers, and names that cannot be imported: what a deployment would have to allow, too.
os.environ["GPU_FLEET_ALLOWED_NOTIFIERS"] = "airflow.providers, tests.unit, nowhere"
