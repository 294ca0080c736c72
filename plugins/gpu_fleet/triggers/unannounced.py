"""Instances of the pools that ended because of an interruption that no message has told.

What is read is the end: the instance's id alone. Its node is leaving, and for what cause the node does not say; or the
cluster has forgotten it, and most of such messages are about instances of others. Two witnesses remain for about an
hour. Karpenter leaves an event on a NodeClaim that it deletes because of an interruption, not on one that it removes in
the ordinary way. And EC2 shows a terminated instance with its tags and the reason of its end (EC2 User Guide,
"Terminate Amazon EC2 instances").
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.interruptions.event import Case
from gpu_fleet.core.interruptions.messages import Kind, Notice
from gpu_fleet.core.interruptions.whose import Home
from gpu_fleet.core.kubernetes.kinds import EVENT, NODE_CLAIM
from gpu_fleet.core.kubernetes.names import TAG_NODE_CLAIM, TAG_NODE_POOL, owned_tag
from gpu_fleet.core.queries import KubeQuery
from gpu_fleet.hooks.aws import aws_session
from gpu_fleet.hooks.aws.threads import DaemonThreads

if TYPE_CHECKING:
    from gpu_fleet.hooks.kubernetes.aio import AsyncKubeClient

log = logging.getLogger(__name__)

#: Begins the code of a state reason where EC2 ended the instance, not a caller of its API (EC2 API Reference,
#: StateReason: ``Server.SpotInstanceTermination``, ``Client.UserInitiatedShutdown``).
_BY_EC2 = "Server."
#: Karpenter's event on the NodeClaim that it deletes because of an interruption (aws/karpenter-provider-aws v1.14.1
#: ``pkg/controllers/interruption/events/events.go``). Events about cluster-scoped objects are in this namespace.
_REASON, _NAMESPACE = "TerminatingOnInterruption", "default"
#: Instances in one question; EC2 takes 200 values in a filter.
_MOST = 200


class UnannouncedEnds:
    """
    :param cluster: the EKS cluster's name, which Karpenter's instances have as a tag.
    :param pools: names of the NodePools whose nodes are ours.
    """

    def __init__(
        self,
        client: AsyncKubeClient,
        connection: str | None,
        region: str | None,
        cluster: str,
        pools: Collection[str],
    ) -> None:
        self._client = client
        self._connection = connection
        self._region = region
        self._cluster = cluster
        self._pools = sorted(pools)
        self._threads = DaemonThreads(f"gpu-fleet-unannounced-{cluster}")

    async def cases(self, notices: Mapping[str, Notice], homes: Mapping[str, Home], *, patience_s: float) -> list[Case]:
        """Those of the notices that are about such an instance; none that cannot be found out about in time.

        :param notices: by instance.
        :param homes: of the instances that still have a Node or NodeClaim.
        """
        ended = {name: each for name, each in notices.items() if each.kind in (Kind.STOPPING, Kind.TERMINATING)}
        found: list[Case] = []
        try:
            async with asyncio.timeout(patience_s):
                for name, notice in ended.items():
                    if name in homes and await self._interrupted(homes[name].claim):
                        found.append(_leaving(notice, homes[name]))
                forgotten = {name: notice for name, notice in ended.items() if name not in homes}
                if forgotten and self._pools:
                    await self._look_back(forgotten, found)
        except TimeoutError:
            log.warning("whether %s were lost to an interruption could not be found out in time", ", ".join(ended))
        except GpuFleetError as error:
            log.warning("instances that ended cannot be looked at: %s", error.message)
        return found

    async def _look_back(self, notices: Mapping[str, Notice], found: list[Case]) -> None:
        for instance in await self._threads.run(lambda: self._describe(sorted(notices)[:_MOST])):
            tags = {tag["Key"]: tag.get("Value", "") for tag in instance.get("Tags") or []}
            claim, pool = tags.get(TAG_NODE_CLAIM, ""), tags[TAG_NODE_POOL]
            reason = str((instance.get("StateReason") or {}).get("Code") or "")
            if reason.startswith(_BY_EC2) or await self._interrupted(claim):
                notice = notices[str(instance["InstanceId"])]
                log.info("%s: an instance of pool %s is gone with its node", notice.instance, pool)
                found.append(Case(notice, claim=claim or None, pool=pool, unannounced=True))

    def close(self) -> None:
        self._threads.close()

    def _describe(self, instances: list[str]) -> list[Mapping[str, Any]]:
        """Those that Karpenter launched for a pool of ours, as EC2 shows them; in a thread."""
        filters = {
            "instance-id": instances,
            f"tag:{owned_tag(self._cluster)}": ["owned"],
            f"tag:{TAG_NODE_POOL}": self._pools,
        }
        return aws_session(self._connection, self._region).paginate(
            "ec2",
            "describe_instances",
            "Reservations.Instances",
            Filters=[{"Name": name, "Values": values} for name, values in filters.items()],
        )

    async def _interrupted(self, claim: str) -> bool:
        """Whether Karpenter deleted the NodeClaim because of an interruption; not, if its events cannot be read."""
        if not claim:
            return False
        fields = f"involvedObject.kind={NODE_CLAIM.kind},involvedObject.name={claim},reason={_REASON}"
        try:
            events, _ = await self._client.list(KubeQuery("events", EVENT, _NAMESPACE, field_selector=fields))
        except GpuFleetError as error:
            log.warning("the events of NodeClaim %s cannot be read: %s", claim, error.message)
            return False
        return bool(events)


def _leaving(notice: Notice, home: Home) -> Case:
    return Case(
        notice,
        node=home.node or None,
        node_uid=home.uid or None,
        claim=home.claim or None,
        pool=home.pool,
        node_group=home.node_group,
        unannounced=True,
    )
