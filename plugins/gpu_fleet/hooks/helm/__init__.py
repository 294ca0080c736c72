"""Helm releases: ``hook`` for custom tasks, ``engine`` behind it.

``HelmHook`` can be imported from here, and, as all that a DAG needs for Helm releases, from :mod:`gpu_fleet.helm`. It
is loaded when it is first asked for: most importers of a module in this folder do not need it.

To follow one install, read these 20 files in this order:

- the task: ``operators/helm/release.py``, ``operators/helm/base.py``;
- before the Lease is taken: ``engine.py``, ``charts/archives.py``, ``preparation.py``;
- observe and decide: ``looking.py``, ``storage.py``; in ``core/releases/``: ``ledger.py``, ``state.py``, ``decide.py``,
  ``guards.py``;
- the Lease: ``session.py``, ``lease.py``;
- the actions: ``base.py``, ``table.py``, ``install.py``, ``upgrade.py`` and ``record.py`` in ``actions/``;
- helm itself: ``command.py`` and ``process.py`` in ``binary/``.
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
