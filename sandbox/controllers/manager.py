"""All controllers of the sandbox, started together and kept running."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from sandbox.controllers.base import Context, Controller, keep_running
from sandbox.controllers.disruption import DisruptionController
from sandbox.controllers.garbage import GarbageCollector
from sandbox.controllers.namespace import NamespaceController
from sandbox.controllers.nodelifecycle import NodeLifecycleController
from sandbox.controllers.podgc import PodCollector
from sandbox.controllers.quota import QuotaController
from sandbox.controllers.scheduling.scheduler import Scheduler
from sandbox.controllers.serviceaccount import ServiceAccountController
from sandbox.controllers.tainteviction import TaintEvictionController
from sandbox.controllers.workloads.daemonset import DaemonSetController
from sandbox.controllers.workloads.deployment import DeploymentController
from sandbox.controllers.workloads.job import JobController
from sandbox.controllers.workloads.replicaset import ReplicaSetController
from sandbox.controllers.workloads.statefulset import StatefulSetController
from sandbox.kube.client import Kube
from sandbox.settings import Clock, Settings

log = logging.getLogger("sandbox.controllers")

CONTROLLERS: tuple[type[Controller], ...] = (
    Scheduler,
    DaemonSetController,
    DeploymentController,
    ReplicaSetController,
    StatefulSetController,
    JobController,
    NamespaceController,
    GarbageCollector,
    DisruptionController,
    PodCollector,
    NodeLifecycleController,
    TaintEvictionController,
    QuotaController,
    ServiceAccountController,
)


async def run(settings: Settings, clock: Clock, kube: Kube) -> None:
    """Run every controller against one API server until cancelled.

    :param settings: only its fault board is consulted.
    :param clock: real controllers' time-outs are divided by its speed.
    :param kube: a client that may do everything; it stays open.
    """
    context = Context(settings, clock, kube)
    tasks = [
        asyncio.create_task(_forever("recorder", context.recorder.run), name="controllers-recorder"),
        asyncio.create_task(_forever("discovery", context.all_kinds.run), name="controllers-discovery"),
    ]
    for controller in CONTROLLERS:
        task = keep_running(lambda kind=controller: kind(context))  # type: ignore[misc]
        tasks.append(asyncio.create_task(task, name=f"controllers-{controller.name}"))
    try:
        await asyncio.gather(*tasks)
    finally:
        for each in tasks:
            each.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await context.informers.close()


async def _forever(name: str, work: Callable[[], Awaitable[None]]) -> None:
    while True:
        try:
            await work()
        except Exception:
            log.exception("%s crashed; restarting it", name)
        await asyncio.sleep(1.0)
