"""Helm releases: ``hook`` for custom tasks, ``engine`` behind it.

``HelmHook`` can be imported from here, and, as all that a DAG needs for Helm releases, from :mod:`gpu_fleet.helm`. It
is loaded when it is first asked for: most importers of a module in this folder do not need it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gpu_fleet.hooks.helm.hook import HelmHook

__all__ = ["HelmHook"]


def __getattr__(name: str) -> Any:
    if name != "HelmHook":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from gpu_fleet.hooks.helm.hook import HelmHook

    return HelmHook
