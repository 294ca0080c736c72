"""First aid for one cluster: from a notice about an instance to a node that is marked and cordoned.

It must not wait for a worker: a pod that is scheduled to a dying node in the meantime is lost. Idempotent: what is
written follows from the node and the notice (``core/interruptions/marks.py``), and a write meets the version that was
looked at or nothing.

While the API server is away, the attempts go on until the instance is gone, also after the event was sent with the
problem in it: whoever reaches the cluster first, this or a worker, helps.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import Conflict, GpuFleetError, NotFound, Throttled, TransientError
from gpu_fleet.core.interruptions.event import Case
from gpu_fleet.core.interruptions.marks import first_aid, is_cordoned, outranks
from gpu_fleet.core.interruptions.messages import SPOT_NOTICE_S, Kind, Notice
from gpu_fleet.core.interruptions.nodes import instance_of
from gpu_fleet.core.interruptions.victims import seen_pods
from gpu_fleet.core.interruptions.whose import Home, Scope, homes, left_before, of_node
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.queries import KubeQuery

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.aio import AsyncKubeClient
    from gpu_fleet.hooks.kubernetes.first_aid import NodeFirstAid

log = logging.getLogger(__name__)

#: Seconds from the reading of a message after which its event is sent, whatever is left to do: the worker may reach
#: the cluster where this triggerer cannot.
PATIENCE_S = 3.0
#: Seconds from the reading of a message after which first aid comes too late.
EXPIRES_S = SPOT_NOTICE_S
#: Nodes that are looked at and written to at the same time.
AT_ONCE = 20
#: Seconds that the look at the pods may delay the event.
PODS_S = 2.0
#: Looks at a node that changes under our hands before that counts as trouble of the API server.
LOOKS = 5


@dataclass
class Patient:
    """An instance under treatment.

    :ivar home: what it is in the cluster; ``None`` before that is known, and if it is not ours.
    :ivar looked: whether the cluster could be asked.
    :ivar problem: why the last attempt failed; ``None`` before one has, and after one has succeeded.
    """

    notice: Notice
    read_at: float
    home: Home | None = None
    looked: bool = False
    marked: bool = False
    cordoned: bool = False
    problem: str | None = None
    pods: tuple[Mapping[str, Any], ...] = ()
    task: asyncio.Task[None] | None = field(default=None, repr=False)


class Ward:
    """The nodes of one cluster, by instance.

    :param client: a client of this trigger; whoever made it closes it, after :meth:`close`.
    :param clock: epoch seconds; injected by tests.
    """

    def __init__(
        self,
        client: AsyncKubeClient,
        aid: NodeFirstAid,
        scope: Scope,
        *,
        clock: Callable[[], float] = time.time,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self._client = client
        self._aid = aid
        self._scope = scope
        self._clock = clock
        self._patience_s = patience_s
        self._homes: dict[str, Home] = {}
        #: Number of the last complete look; a patient that is not found asks for one that began after it came.
        self._looks = 0
        self._looking: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._patients: dict[str, Patient] = {}

    def open(self) -> None:
        """Begin to look at the cluster before the first message comes; one that is away is asked again when it does."""
        self._looking = self._begin_look()

    def home_of(self, instance: str) -> Home | None:
        """What it was at the last look; ``None`` if it is none of ours, or gone."""
        return self._homes.get(instance)

    async def treat(self, notices: Mapping[str, Notice], read_at: float) -> tuple[list[Case], dict[str, str]]:
        """First aid to all of them at once.

        :param notices: instance id -> the notice that counts.
        :param read_at: when the messages were read, epoch seconds.
        :returns: the cases, and instance id -> why its notice is none: ``unknown`` or ``leaving``.
        """
        patients = {instance: self._admit(notice, read_at) for instance, notice in notices.items()}
        tasks = [patient.task for patient in patients.values() if patient.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=max(0.05, read_at + self._patience_s - self._clock()))
        await self._look_at_pods(patients.values())
        cases: list[Case] = []
        skipped: dict[str, str] = {}
        for instance, patient in patients.items():
            notice = notices[instance]
            if patient.home is None and patient.looked:
                why = "unknown"
            elif patient.home is not None and left_before(patient.home, notice):
                why = "leaving"
            else:
                cases.append(_case(replace(patient, notice=notice)))
                continue
            skipped[instance] = why
            log.info("%s of %s: nothing to do (%s)", notice.kind.value, instance, why)
        return cases, skipped

    async def _look_at_pods(self, patients: Iterable[Patient]) -> None:
        """Which pods run on nodes that are drained. Only for the report: it neither takes long nor fails anything."""

        async def look(patient: Patient) -> None:
            node = patient.home.node if patient.home is not None else ""
            async with slots:
                query = KubeQuery("pods", POD, field_selector=f"spec.nodeName={node}")
                listed, _ = await self._client.list(query)
            patient.pods = tuple(seen_pods(listed))

        slots = asyncio.Semaphore(AT_ONCE)
        tasks = [asyncio.create_task(look(each)) for each in patients if _is_drained(each) and not each.pods]
        if not tasks:
            return
        _, late = await asyncio.wait(tasks, timeout=PODS_S)
        for task in late:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                log.info("the pods of a cordoned node could not be listed: %s", result)

    async def close(self) -> None:
        """End all attempts; harmless to repeat."""
        tasks = [patient.task for patient in self._patients.values() if patient.task is not None]
        tasks += [self._looking] if self._looking is not None else []
        self._patients.clear()
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- one instance ------------------------------------------------------------------------------------------

    def _admit(self, notice: Notice, read_at: float) -> Patient:
        """The patient under treatment, unless the notice says more than the one that it is treated for."""
        known = self._patients.get(notice.instance)
        if known is not None and not outranks(notice, known.notice):
            return known
        patient = Patient(notice, read_at)
        self._patients[notice.instance] = patient
        patient.task = asyncio.create_task(self._care(patient))
        return patient

    async def _care(self, patient: Patient) -> None:
        """Attempts until one succeeds, none can, or it is too late."""
        instance, failures = patient.notice.instance, 0
        try:
            while True:
                pause = backoff_s(failures)
                try:
                    async with self._slots:
                        await self._attempt(patient)
                    if patient.problem is not None:
                        log.info("%s: first aid given after %d failed attempts", instance, failures)
                    patient.problem = None
                    return
                except TransientError as error:
                    patient.problem = f"{error.reason}: {error.message}"
                    pause = (
                        max(pause, getattr(error, "retry_after", None) or 0.0)
                        if isinstance(error, Throttled)
                        else pause
                    )
                except GpuFleetError as error:
                    patient.problem = f"{error.reason}: {error.message}"
                    log.warning("%s: no first aid: %s", instance, patient.problem)
                    return
                except Exception as error:
                    patient.problem = f"{type(error).__name__}: {error}"
                    log.exception("%s: no first aid", instance)
                    return
                if self._clock() + pause > patient.read_at + EXPIRES_S:
                    log.warning("%s: no first aid within %.0f s: %s", instance, EXPIRES_S, patient.problem)
                    return
                failures += 1
                await asyncio.sleep(pause)
        finally:
            if self._patients.get(instance) is patient:
                del self._patients[instance]

    async def _attempt(self, patient: Patient) -> None:
        """Find the instance's node, and write to it what is missing.

        :raises GpuFleetError: the cluster did not answer usefully.
        """
        asked_at, instance = self._looks, patient.notice.instance
        home = self._homes.get(instance)
        for _ in range(LOOKS):
            if (home is None or not home.node) and self._looks == asked_at:
                await self._look_again(asked_at)
                home = self._homes.get(instance)
            patient.looked, patient.home = self._looks > asked_at or home is not None, home
            if home is None or not home.node or left_before(home, patient.notice):
                return  # not ours, or still launching, or going for a reason of its own
            node = await self._client.get(ObjectRef(NODE, home.node))
            if node is None or instance_of(node) != instance or not self._scope.has_node(node):
                # The node is gone, and its name may be another instance's: look at the cluster again, once.
                if self._looks > asked_at:
                    patient.home = replace(home, node="", uid="") if home.claim else None
                    return
                home = None
                continue
            patient.home = home = self._homes[instance] = of_node(node, home, self._scope)
            if left_before(home, patient.notice):
                return
            wanted = first_aid(node, patient.notice, seen=patient.read_at)
            try:
                if wanted is not None:
                    node = await self._aid.give(node, wanted)
            except (Conflict, NotFound):
                continue  # it changed, or is gone: look at it again
            patient.marked, patient.cordoned = True, is_cordoned(node)
            if wanted is not None:
                log.info("%s: node %s is marked%s", instance, home.node, " and cordoned" if wanted.cordon else "")
            return
        raise TransientError(f"node of {instance} changed at each of {LOOKS} looks", reason="Conflict")

    # --- the cluster -------------------------------------------------------------------------------------------

    async def _look_again(self, asked_at: int) -> None:
        """A complete look that ended after this was called; one for all who ask meanwhile."""
        while self._looks == asked_at:
            if self._looking is None or self._looking.done():
                self._looking = self._begin_look()
            await asyncio.shield(self._looking)

    def _begin_look(self) -> asyncio.Task[None]:
        task = asyncio.create_task(self._look())
        # Whoever waits for it gets its error; of one that nobody waits for it is of no interest.
        task.add_done_callback(lambda done: done.cancelled() or done.exception())
        return task

    async def _look(self) -> None:
        """The index anew: Nodes and NodeClaims in scope, and no others."""
        queries = [
            KubeQuery(f"nodes{place}", NODE, label_selector=selector)
            for place, selector in enumerate(self._scope.selectors())
        ]
        selector = self._scope.claim_selector()
        if selector is not None:
            queries.append(KubeQuery("claims", NODE_CLAIM, label_selector=selector))
        found = await asyncio.gather(*(self._client.list(query) for query in queries))
        items: Sequence[dict[str, Any]] = [item for listed, _ in found for item in listed]
        nodes = [item for item in items if item["kind"] == NODE.kind]
        claims = [item for item in items if item["kind"] == NODE_CLAIM.kind]
        self._homes = homes(nodes, claims, self._scope)
        self._looks += 1


def _is_drained(patient: Patient) -> bool:
    """Whether the pods of its node are going to be evicted, by whomever."""
    return patient.cordoned or (patient.marked and patient.notice.kind is Kind.SCHEDULED)


def _case(patient: Patient) -> Case:
    home = patient.home or Home()
    problem = patient.problem
    if problem is None and patient.task is not None and not patient.task.done():
        problem = "ApiUnavailable: the API server has not answered yet"
    return Case(
        notice=patient.notice,
        node=home.node or None,
        node_uid=home.uid or None,
        claim=home.claim or None,
        pool=home.pool,
        node_group=home.node_group,
        marked=patient.marked,
        cordoned=patient.cordoned,
        problem=problem,
        pods=patient.pods,
    )


def backoff_s(failures: int) -> float:
    """Seconds before the next attempt: 0.1, 0.2, 0.4 … at most 5, with half of it random."""
    full = min(5.0, 0.1 * float(2 ** min(failures, 10)))
    return full * (0.5 + random.random() / 2)  # noqa: S311  (jitter, not a secret)
