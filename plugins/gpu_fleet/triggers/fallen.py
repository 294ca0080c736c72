"""Instances of the pools whose end is read when the cluster has forgotten them: no Node and no NodeClaim has their id.

The message says nothing but the id, and most of such messages are about instances of others, or about nodes that
Karpenter removed in the ordinary way. EC2 shows a terminated instance, with its tags and the reason of its end, for
about an hour (EC2 User Guide, "Terminate Amazon EC2 instances"), and Kubernetes keeps events as long. Together they
tell: it was launched for a pool of the cluster file, and EC2 ended it, or Karpenter did because of an interruption.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from gpu_fleet.core.errors import GpuFleetError
from gpu_fleet.core.interruptions.event import Case
from gpu_fleet.core.interruptions.messages import Kind, Notice
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


class Fallen:
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
        self._threads = DaemonThreads(f"gpu-fleet-fallen-{cluster}")

    async def cases(self, notices: Iterable[Notice]) -> list[Case]:
        """Those of the notices that are about a lost instance of a pool; none if EC2 cannot be asked."""
        asked = {each.instance: each for each in notices if each.kind in (Kind.STOPPING, Kind.TERMINATING)}
        if not asked or not self._pools:
            return []
        try:
            instances = await self._threads.run(lambda: self._describe(sorted(asked)[:_MOST]))
        except GpuFleetError as error:
            log.warning("instances that ended cannot be looked at: %s", error.message)
            return []
        found = []
        for instance in instances:
            tags = {tag["Key"]: tag.get("Value", "") for tag in instance.get("Tags") or []}
            claim = tags.get(TAG_NODE_CLAIM, "")
            if str((instance.get("StateReason") or {}).get("Code") or "").startswith(_BY_EC2):
                lost = True
            else:
                lost = bool(claim) and await self._interrupted(claim)
            if lost:
                notice = asked[str(instance["InstanceId"])]
                log.info("%s: an instance of pool %s is gone with its node", notice.instance, tags[TAG_NODE_POOL])
                found.append(Case(notice, claim=claim or None, pool=tags[TAG_NODE_POOL], fallen=True))
        return found

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
        fields = f"involvedObject.kind={NODE_CLAIM.kind},involvedObject.name={claim},reason={_REASON}"
        try:
            events, _ = await self._client.list(KubeQuery("events", EVENT, _NAMESPACE, field_selector=fields))
        except GpuFleetError as error:
            log.warning("the events of NodeClaim %s cannot be read: %s", claim, error.message)
            return False
        return bool(events)
