"""Follows the pods of nodes, each by a list and a watch of its own, and hands every observation to a queue.

That is how kubelets follow their pods: API servers keep an index by node (kubernetes v1.36
``pkg/registry/core/pod/strategy.go``, ``Indexers`` and ``NodeNameTriggerFunc``), so a hundred such watches cost the
server less than one of all pods of a large cluster, and nothing that happens elsewhere reaches this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, cast

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.kubernetes.kinds import NODE, POD, ObjectRef
from gpu_fleet.core.queries import KubeQuery
from gpu_fleet.hooks.kubernetes.access import ClusterAccess
from gpu_fleet.hooks.kubernetes.aio import CLOSING_TURNS, AsyncKubeClient

Pod = Mapping[str, Any]

#: Seconds after which a node's pods are listed anew, and their node is looked for: a connection that has died without a
#: word would hide for longer than a spot instance lives, what happens there.
RELIST_S = 15.0
#: Seconds for a list: a server that hangs is asked again.
LIST_WITHIN_S = 8.0
#: First and longest pause after a list or watch that failed.
PAUSE_S, LONGEST_PAUSE_S = 0.5, 2.0
#: Lists under way at a time.
LISTS = 16


@dataclass(frozen=True)
class Listed:
    """All pods of a node; those that are not among them are gone."""

    node: str
    pods: list[dict[str, Any]]


@dataclass(frozen=True)
class Changed:
    """A pod was added or changed, or is gone."""

    node: str
    pod: Pod
    gone: bool


@dataclass(frozen=True)
class NodeGone:
    """The Node object does not exist."""

    node: str


@dataclass(frozen=True)
class Blind:
    """The pods of a node cannot be seen at the moment.

    :ivar why: in words.
    """

    node: str
    why: str


Observation = Listed | Changed | NodeGone | Blind


class Feed:
    """Follows the pods of some nodes in a thread of its own, from :meth:`start` to :meth:`close`.

    :param tell: called for every observation, in that thread.
    """

    def __init__(self, access: ClusterAccess, nodes: Iterable[str], tell: Callable[[Observation], None]) -> None:
        self._access = access
        self._nodes = list(nodes)
        self._tell = tell
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="gpu-fleet-drain-feed", daemon=True)
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """End all watches; returns when the thread has ended."""
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._cancel)
        self._thread.join(timeout=LIST_WITHIN_S)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _run(self) -> None:
        try:
            self._task = self._loop.create_task(self._follow_all())
            with contextlib.suppress(asyncio.CancelledError):
                self._loop.run_until_complete(self._task)
            self._loop.run_until_complete(_settle())
        finally:
            self._loop.close()

    async def _follow_all(self) -> None:
        client, lists = AsyncKubeClient(self._access), asyncio.Semaphore(LISTS)
        try:
            await asyncio.gather(*(self._follow(client, lists, node) for node in self._nodes))
        finally:
            await client.close()

    async def _follow(self, client: AsyncKubeClient, lists: asyncio.Semaphore, node: str) -> None:
        query = KubeQuery("pods", POD, field_selector=f"spec.nodeName={node}")
        pause = PAUSE_S
        while True:
            try:
                async with lists, asyncio.timeout(LIST_WITHIN_S):
                    pods, version = await client.list(query)
                    self._tell(Listed(node, pods))
                    if await client.get(ObjectRef(NODE, node)) is None:
                        self._tell(NodeGone(node))
                pause = PAUSE_S
                # All nodes begin at the same moment; their next lists need not.
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(RELIST_S * (0.75 + random.random() / 2)):  # noqa: S311  (jitter)
                        await self._watch(client, query, node, version)
            except Exception as error:  # noqa: BLE001  (whatever it is, a blind drain still has to look again)
                self._tell(Blind(node, _words(error)))
                await asyncio.sleep(pause * (1.0 + random.random() / 4))  # noqa: S311  (jitter, not a secret)
                pause = min(LONGEST_PAUSE_S, pause * 2)

    async def _watch(self, client: AsyncKubeClient, query: KubeQuery, node: str, version: str) -> None:
        watch = cast("AsyncGenerator[tuple[str, dict[str, Any]], None]", client.watch(query, version))
        async with aclosing(watch) as changes:
            async for kind, pod in changes:
                if kind != "BOOKMARK":
                    self._tell(Changed(node, pod, gone=kind == "DELETED"))


async def _settle() -> None:
    """What is left when all watches have ended: a connection that was being opened closes in later turns of the loop,
    and a loop that is closed before that leaves its socket open."""
    rest = asyncio.all_tasks() - {asyncio.current_task()}
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()
    for _ in range(CLOSING_TURNS):
        await asyncio.sleep(0.005)


def _words(error: Exception) -> str:
    if isinstance(error, GpuFleetError):
        return error.message
    return f"no answer within {LIST_WITHIN_S:.0f} s" if isinstance(error, TimeoutError) else repr(error)
