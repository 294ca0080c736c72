"""The asset that a cluster's interruptions are events of, and the trigger that watches its queue.

::

    SQS ── QueueStream ──┬── filter of cluster a ── first aid ── asset event
    (one per queue)      └── filter of cluster b ── first aid ── asset event

The trigger only reads the cluster, with one named exception: first aid (:mod:`gpu_fleet.triggers.first_aid`), which may
not wait for a worker. Everything is safe when it is done twice: a message comes more than once, two triggerers may read
one queue (one that was paused wakes up after its triggers were given to another), and Airflow starts this trigger
again whenever it has ended.

A queue belongs to one cluster. Several clusters may share a stream inside one triggerer, but Airflow distributes
triggers among its triggerers, and a message reaches only one of those.
"""

from __future__ import annotations

import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.triggers.base import BaseEventTrigger, TriggerEvent

from gpu_fleet.core.interruptions.event import Case, Payload, uri
from gpu_fleet.core.interruptions.marks import is_heeded
from gpu_fleet.core.interruptions.messages import ANNOUNCED, Notice
from gpu_fleet.core.interruptions.ways import newest_per_instance
from gpu_fleet.core.interruptions.whose import Scope

if TYPE_CHECKING:
    from airflow.sdk import Asset
    from airflow.triggers.shared_stream import SharedStreamProducer

    from gpu_fleet.core.spec import ClusterSpec
    from gpu_fleet.triggers.first_aid import Ward
    from gpu_fleet.triggers.unannounced import UnannouncedEnds

log = logging.getLogger(__name__)


def interruptions_asset(spec: ClusterSpec) -> Asset | None:
    """The asset ``gpu-fleet://<cluster>/interruptions`` with the watcher of the cluster's queue, for a DAG's schedule.

    :returns: ``None`` if the file names no queue.
    """
    from airflow.sdk import Asset, AssetWatcher

    trigger = InterruptionTrigger.of(spec)
    if trigger is None:
        return None
    name = uri(spec.name)
    return Asset(name=name, uri=name, watchers=[AssetWatcher(name="queue", trigger=trigger)])


#: Instances that a trigger remembers at most: those of many thousand messages.
_MET = 5000
#: Seconds for a look at instances that ended untold: while others wait for their drain, and else.
PATIENCE_S, LONG_S = 2.0, 30.0


class InterruptionTrigger(BaseEventTrigger):
    """Reads one queue for one cluster; each event's payload is a :class:`gpu_fleet.core.interruptions.event.Payload`.

    :param cluster: name of the cluster file.
    :param access: ``ClusterAccess.to_json()``; no credentials.
    :param connection: Airflow connection of the queue's account; ``None`` for boto3's own chain.
    :param region: of the queue.
    :param queue: its name.
    :param handler: ``interruptions.handler``, resolved. First aid is the same for both.
    :param rebalance: ``interruptions.rebalance``: ``ignore``, ``signal`` or ``replace``.
    :param pools: names of the NodePools whose nodes are ours.
    :param node_groups: managed node groups whose GPU nodes are ours.
    """

    def __init__(
        self,
        cluster: str,
        access: dict[str, Any],
        connection: str | None,
        region: str | None,
        queue: str,
        handler: str,
        rebalance: str,
        pools: Sequence[str],
        node_groups: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.cluster = cluster
        self.access = dict(access)
        self.connection = connection
        self.region = region
        self.queue = queue
        self.handler = handler
        self.rebalance = rebalance
        self.pools = list(pools)
        self.node_groups = list(node_groups)
        self._client: Any = None
        self._ward: Ward | None = None
        self._unannounced: UnannouncedEnds | None = None
        #: Instances that had a case, the oldest first.
        self._met: dict[str, None] = {}

    @classmethod
    def of(cls, spec: ClusterSpec) -> InterruptionTrigger | None:
        """``None`` if the cluster file names no queue."""
        from gpu_fleet.hooks.kubernetes.access import ClusterAccess

        found = spec.interruptions
        if found.queue is None:
            return None
        return cls(
            cluster=spec.name,
            access=ClusterAccess.from_spec(spec).to_json(),
            connection=spec.aws.connection,
            region=spec.aws.region,
            queue=found.queue,
            handler=spec.interruption_handler,
            rebalance=found.rebalance,
            pools=sorted(pool.name for pool in spec.node_pools),
            node_groups=sorted(found.node_groups),
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Everything in a fixed order: Airflow compares a watcher's arguments as JSON text (Airflow 3.3.2
        airflow/triggers/base.py, ``BaseEventTrigger.hash``), and starts the trigger anew when they differ."""
        return (
            f"{InterruptionTrigger.__module__}.{InterruptionTrigger.__qualname__}",
            {
                "cluster": self.cluster,
                "access": dict(sorted(self.access.items())),
                "connection": self.connection,
                "region": self.region,
                "queue": self.queue,
                "handler": self.handler,
                "rebalance": self.rebalance,
                "pools": self.pools,
                "node_groups": self.node_groups,
            },
        )

    # --- the queue, once for all clusters that share it --------------------------------------------------------

    def shared_stream_key(self) -> Hashable:
        return (type(self).__name__, self.connection, self.region, self.queue)

    @classmethod
    def create_shared_stream_producer(cls, kwargs: dict[str, Any]) -> SharedStreamProducer:
        from gpu_fleet.triggers.queue_stream import QueueStream

        return QueueStream.of(kwargs["connection"], kwargs["region"], kwargs["queue"])

    # --- this cluster ------------------------------------------------------------------------------------------

    async def filter_shared_stream(self, shared_stream: AsyncIterator[Any]) -> AsyncIterator[TriggerEvent]:
        """First aid to this cluster's nodes, and one event per batch of messages that is about any.

        It ends when the stream does: its queue overflowed, or an event was not stored in time. Then its messages stay
        in SQS, and Airflow, which keeps the triggers of an asset's watchers, starts this one again with its next
        look (Airflow 3.3.2 airflow/jobs/triggerer_job_runner.py, ``update_triggers``).
        """
        ward = self._open()
        while True:
            try:
                batch = await anext(shared_stream)
            except StopAsyncIteration:
                return
            except Exception as error:  # noqa: BLE001  (raised or returned, the trigger is started again)
                log.warning(
                    "cluster %s: the stream of queue %s ended: %s; it is begun anew", self.cluster, self.queue, error
                )
                return
            payload = await self._handle(ward, batch)
            if payload.cases:
                yield TriggerEvent(payload.to_json())

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Never called: this trigger always has a :meth:`shared_stream_key`, and without acknowledgement a message
        could be lost.

        :raises NotImplementedError: always.
        """
        raise NotImplementedError("the queue is read as a shared stream only")
        yield  # makes this an async generator

    async def _unannounced_of(
        self, ward: Ward, counting: Mapping[str, Notice], passed_over: dict[str, str], cases: Sequence[Case]
    ) -> list[Case]:
        """Instances that ended because of an interruption that no message has told, and that were ours.

        Of one that had a case of this trigger nothing is asked again.
        """
        for case in cases:
            self._met[case.notice.instance] = None
        asked = {each: counting[each] for each in sorted(passed_over) if each in counting and each not in self._met}
        if self._unannounced is None or not asked:
            return []
        homes = {each: home for each in asked if (home := ward.home_of(each)) is not None}
        found = await self._unannounced.cases(asked, homes, patience_s=PATIENCE_S if cases else LONG_S)
        for case in found:
            del passed_over[case.notice.instance]
            self._met[case.notice.instance] = None
        while len(self._met) > _MET:
            del self._met[next(iter(self._met))]
        return found

    def _open(self) -> Ward:
        from gpu_fleet.hooks.kubernetes.first_aid import NodeFirstAid
        from gpu_fleet.hooks.kubernetes.hook import ClusterAccess, KubernetesHook
        from gpu_fleet.triggers.first_aid import Ward
        from gpu_fleet.triggers.unannounced import UnannouncedEnds

        self._client = KubernetesHook(ClusterAccess.from_json(self.access)).async_client()
        scope = Scope(tuple(self.pools), tuple(self.node_groups))
        self._ward = Ward(self._client, NodeFirstAid(self._client), scope)
        self._ward.open()
        name = str(self.access.get("cluster_name") or "")
        if name:
            self._unannounced = UnannouncedEnds(self._client, self.connection, self.region, name, self.pools)
        return self._ward

    async def _handle(self, ward: Ward, batch: Mapping[str, Any]) -> Payload:
        read_at = float(batch["read_at"])
        sent = {Notice.from_json(each["notice"]): each["sent"] for each in batch["notices"]}
        notices = [Notice.from_json(each["notice"]) for each in batch["notices"]]
        heeded = [notice for notice in notices if is_heeded(notice, self.rebalance)]
        counting = newest_per_instance(heeded)
        try:
            cases, passed_over = await ward.treat(counting, read_at)
            # Karpenter ends a drained instance within seconds. Read together, that end must not hide its announcement.
            announced = newest_per_instance(
                [each for each in heeded if each.kind in ANNOUNCED and passed_over.get(each.instance) == "leaving"]
            )
            cases += (await ward.treat(announced, read_at))[0]
            cases += await self._unannounced_of(ward, counting, passed_over, cases)
        except Exception as error:
            # Not lost with a defect of ours: the worker looks at the cluster for itself.
            log.exception("cluster %s: no first aid", self.cluster)
            cases = [Case(notice, problem=f"{type(error).__name__}: {error}") for notice in counting.values()]
            passed_over, announced = {}, {}
        skipped = Counter(passed_over.values())
        skipped["ignored"] = len(notices) - len(heeded)
        skipped["weaker"] = len(heeded) - len(counting) - len(announced)
        skipped = +skipped
        found = tuple(replace(case, sent=sent[case.notice]) for case in cases)
        log.info(
            "cluster %s: %d notices, %d instances of ours, skipped: %s",
            self.cluster,
            len(notices),
            len(found),
            ", ".join(f"{count} {cause}" for cause, count in sorted(skipped.items())) or "none",
        )
        return Payload(self.cluster, read_at, found, dict(sorted(skipped.items())))

    async def cleanup(self) -> None:
        """Stop the attempts that are left and close the connections; harmless to repeat."""
        ward, self._ward = self._ward, None
        if ward is not None:
            with contextlib.suppress(Exception):
                await ward.close()
        unannounced, self._unannounced = self._unannounced, None
        if unannounced is not None:
            unannounced.close()
        client, self._client = self._client, None
        if client is not None:
            await client.close()

    async def on_kill(self) -> None:
        """Nothing: it is also called when a paused triggerer wakes up after others have taken over its triggers."""


__all__ = ["InterruptionTrigger", "interruptions_asset"]
