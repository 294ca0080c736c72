"""Imports what every task needs into the process that forks the tasks.

With the LocalExecutor a task is a fork of the scheduler's worker, so what the scheduler has imported costs a task
nothing. Measured on a two-core machine: boto3, the amazon provider's base hook, urllib3 and the package's own core take
0.8 s and 17 MiB per task otherwise. Nothing is connected, read or started here: only modules are imported, because
sockets and threads do not survive a fork. Other components are left alone.
"""

from __future__ import annotations

import importlib
import logging
import sys
import time
from typing import Any

from airflow.listeners import hookimpl

log = logging.getLogger(__name__)

#: ``airflow <this>`` is the component whose children are tasks.
_FORKS_TASKS = "scheduler"

MODULES = (
    "boto3",
    "botocore.signers",
    "urllib3",
    "yaml",
    "airflow.providers.amazon.aws.hooks.base_aws",
    "airflow.providers.standard.operators.hitl",
    "gpu_fleet.core.manifests",
    "gpu_fleet.core.readiness",
    "gpu_fleet.core.spec",
    "gpu_fleet.core.values",
    "gpu_fleet.hooks.aws",
    "gpu_fleet.hooks.eks_token",
    "gpu_fleet.hooks.fleet",
    "gpu_fleet.hooks.helm",
    "gpu_fleet.hooks.kubernetes",
    "gpu_fleet.operators.base",
    "gpu_fleet.phases.family",
    "gpu_fleet.phases.lifecycle",
    "gpu_fleet.triggers.gate",
)


def preload() -> list[str]:
    """Import :data:`MODULES`; what cannot be imported is left to the task that needs it, which will say why.

    :returns: the modules that failed.
    """
    started = time.monotonic()
    failed = []
    for name in MODULES:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  (a scheduler must start whatever is wrong with one module)
            log.warning("cannot preload %s: %r", name, error)
            failed.append(name)
    log.info("preloaded %d modules in %.1f s", len(MODULES) - len(failed), time.monotonic() - started)
    return failed


def is_scheduler(component: Any, argv: list[str]) -> bool:
    """Whether Airflow announces a scheduler's start.

    The announced ``Job`` does not know its own type yet, and a task announces itself too, with its parent's arguments.
    """
    return type(component).__name__ == "Job" and argv[1:2] == [_FORKS_TASKS]


class PreloadListener:
    """Airflow listener: preloads when the scheduler starts, before its executor forks."""

    @hookimpl  # type: ignore[untyped-decorator]
    def on_starting(self, component: Any) -> None:
        if is_scheduler(component, sys.argv):
            preload()
