"""Helm releases for your own DAGs: operators, a sensor and a hook; any chart, any cluster.

>>> from gpu_fleet.helm import HelmReleaseOperator  # doctest: +SKIP

Nothing else of this package is needed: no cluster file, no lifecycle DAG. Each class is loaded when it is first asked
for, so a DAG file pays only for what it imports. See the guide ``docs/guides/helm-releases.md``.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_fleet.core.releases.request import ChartRef, ReleasePolicy, ReleaseRequest
    from gpu_fleet.hooks.helm.hook import HelmHook
    from gpu_fleet.operators.helm.chart_tests import HelmTestOperator
    from gpu_fleet.operators.helm.release import HelmReleaseOperator
    from gpu_fleet.operators.helm.rollback import HelmRollbackOperator
    from gpu_fleet.operators.helm.uninstall import HelmUninstallOperator
    from gpu_fleet.sensors.helm import HelmReleaseSensor

_MODULES = {
    "ChartRef": "core.releases.request",
    "HelmHook": "hooks.helm.hook",
    "HelmReleaseOperator": "operators.helm.release",
    "HelmReleaseSensor": "sensors.helm",
    "HelmRollbackOperator": "operators.helm.rollback",
    "HelmTestOperator": "operators.helm.chart_tests",
    "HelmUninstallOperator": "operators.helm.uninstall",
    "ReleasePolicy": "core.releases.request",
    "ReleaseRequest": "core.releases.request",
}

__all__ = [
    "ChartRef",
    "HelmHook",
    "HelmReleaseOperator",
    "HelmReleaseSensor",
    "HelmRollbackOperator",
    "HelmTestOperator",
    "HelmUninstallOperator",
    "ReleasePolicy",
    "ReleaseRequest",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"gpu_fleet.{_MODULES[name]}"), name)
