"""Operators for Helm releases: any chart in any cluster, and, in ``releases``, this package's own releases.

The operators for DAG authors can be imported from here, and, as all that a DAG needs for Helm releases, from
:mod:`gpu_fleet.helm`. Each is loaded when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_fleet.operators.helm.base import HelmOperator
    from gpu_fleet.operators.helm.chart_tests import HelmTestOperator
    from gpu_fleet.operators.helm.release import HelmReleaseOperator
    from gpu_fleet.operators.helm.rollback import HelmRollbackOperator
    from gpu_fleet.operators.helm.uninstall import HelmUninstallOperator

_MODULES = {
    "HelmOperator": "base",
    "HelmReleaseOperator": "release",
    "HelmRollbackOperator": "rollback",
    "HelmTestOperator": "chart_tests",
    "HelmUninstallOperator": "uninstall",
}

__all__ = [
    "HelmOperator",
    "HelmReleaseOperator",
    "HelmRollbackOperator",
    "HelmTestOperator",
    "HelmUninstallOperator",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
