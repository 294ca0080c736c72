"""Imports what every task needs into the process that forks the tasks, and what parsing needs into the one that forks
the parsers.

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
from collections.abc import Iterable
from typing import Any

from airflow.listeners import hookimpl

log = logging.getLogger(__name__)

#: Other people's modules: they change only when the image does.
LIBRARIES = (
    "aiohttp",
    "boto3",
    "botocore.signers",
    "pydantic",
    "urllib3",
    "yaml",
    "airflow.providers.amazon.aws.hooks.base_aws",
    "airflow.providers.standard.operators.hitl",
)
#: Ours: a component that has imported them must be restarted to see a change of them. Beside what a parse needs it is
#: what operators import only when they act, so that a DAG processor need not load it: each names the top of a chain.
PACKAGE = (
    "gpu_fleet.core.admission.decide",
    "gpu_fleet.core.admission.hold",
    "gpu_fleet.core.capacity.climb",
    "gpu_fleet.core.capacity.pre_pull",
    "gpu_fleet.core.capacity.unfinished",
    "gpu_fleet.core.gates.registry",
    "gpu_fleet.core.interruptions.manual_text",
    "gpu_fleet.core.manifests.build",
    "gpu_fleet.core.manifests.values",
    "gpu_fleet.core.nodes.cap_held",
    "gpu_fleet.core.nodes.planned",
    "gpu_fleet.core.pools.proofs",
    "gpu_fleet.core.preflight.catalogue",
    "gpu_fleet.core.preflight.launch_limits",
    "gpu_fleet.core.preflight.prerequisites",
    "gpu_fleet.core.preflight.prices",
    "gpu_fleet.core.preflight.reservations",
    "gpu_fleet.core.reservations.account",
    "gpu_fleet.core.reservations.told",
    "gpu_fleet.core.run_shape",
    "gpu_fleet.core.spec",
    "gpu_fleet.core.spec.notes",
    "gpu_fleet.core.stages.arrivals",
    "gpu_fleet.core.stages.summary",
    "gpu_fleet.core.teardown.leak_check",
    "gpu_fleet.core.teardown.leaks",
    "gpu_fleet.core.teardown.markdown",
    "gpu_fleet.hooks.aws",
    "gpu_fleet.hooks.aws.reservations",
    "gpu_fleet.hooks.cluster.drift",
    "gpu_fleet.hooks.cluster.drifted",
    "gpu_fleet.hooks.cluster.in_use",
    "gpu_fleet.hooks.cluster.launches",
    "gpu_fleet.hooks.cluster.neighbours",
    "gpu_fleet.hooks.cluster.pods",
    "gpu_fleet.hooks.cluster.prices",
    "gpu_fleet.hooks.files.prices",
    "gpu_fleet.hooks.kubernetes.eks_cluster",
    "gpu_fleet.hooks.files.clusters",
    "gpu_fleet.hooks.helm.charts.locks",
    "gpu_fleet.hooks.helm.hook",
    "gpu_fleet.hooks.kubernetes.hook",
    "gpu_fleet.operators.base",
    "gpu_fleet.operators.capacity.joining",
    "gpu_fleet.operators.draining.drain",
    "gpu_fleet.operators.preflight.reservation_look",
    "gpu_fleet.operators.validation.verdicts",
    "gpu_fleet.phases.family",
    "gpu_fleet.phases.admission",
    "gpu_fleet.phases.alerts",
    "gpu_fleet.phases.capacity",
    "gpu_fleet.phases.drain",
    "gpu_fleet.phases.headroom",
    "gpu_fleet.phases.interruptions",
    "gpu_fleet.phases.preflight",
    "gpu_fleet.phases.prove",
    "gpu_fleet.phases.provision",
    "gpu_fleet.phases.revalidation",
    "gpu_fleet.phases.rollout",
    "gpu_fleet.phases.teardown",
    "gpu_fleet.phases.validation",
    "gpu_fleet.triggers.admission",
    "gpu_fleet.triggers.unannounced",
    "gpu_fleet.triggers.gate",
    "gpu_fleet.triggers.interruptions",
)
#: ``airflow <this>`` -> the modules that its children need. The scheduler's are tasks, and follow the package of the
#: scheduler's start; the DAG processor's parse DAG files, and must see an edited package at once.
MODULES = {"scheduler": (*LIBRARIES, *PACKAGE), "dag-processor": LIBRARIES}


def preload(names: Iterable[str]) -> list[str]:
    """Import modules; what cannot be imported is left to the child that needs it, whose error says why.

    :returns: the modules that failed.
    """
    names = tuple(names)
    started = time.monotonic()
    failed = []
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  (a component must start whatever is wrong with one module)
            log.warning("cannot preload %s: %r", name, error)
            failed.append(name)
    load_uri_handlers()
    log.info("preloaded %d modules in %.1f s", len(names) - len(failed), time.monotonic() - started)
    return failed


def load_uri_handlers() -> None:
    """Have Airflow import every provider's handler of asset URIs, as the first ``Asset`` of a process makes it do.

    Each parse of a DAG with assets, so each task, pays for that otherwise: 0.2 to 0.4 s
    (``airflow.sdk.providers_manager_runtime``, ``asset_uri_handlers``).
    """
    from airflow.sdk import Asset

    try:
        Asset("gpu-fleet://preload/preload/ready")
    except Exception as error:  # noqa: BLE001  (as above: a provider's broken handler must not stop the component)
        log.warning("cannot preload the handlers of asset URIs: %r", error)


def modules_for(component: Any, argv: list[str]) -> tuple[str, ...]:
    """What to preload when Airflow announces the start of a component; nothing for most.

    The announced ``Job`` does not know its own type yet, and a task announces itself too, with its parent's arguments.
    """
    if type(component).__name__ != "Job" or len(argv) < 2:
        return ()
    return MODULES.get(argv[1], ())


class PreloadListener:
    """Airflow listener: preloads when a component starts, before it forks."""

    @hookimpl  # type: ignore[untyped-decorator]
    def on_starting(self, component: Any) -> None:
        names = modules_for(component, sys.argv)
        if names:
            preload(names)
