"""All nodes of the cluster: EC2 says which exist, each becomes a :class:`~sandbox.nodes.machine.Machine`.

Also what the cloud node lifecycle controller does: the Node of an instance that is terminated is deleted
(kubernetes/cloud-provider ``controllers/nodelifecycle``).
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from sandbox.aws.client import Aws
from sandbox.aws.nodegroups import registration_of
from sandbox.aws.shapes import Shapes
from sandbox.kube.client import Kube
from sandbox.kube.informers import Change, SharedInformers
from sandbox.kube.recorder import Recorder
from sandbox.kube.retrying import RetryingKube
from sandbox.latency import Latencies
from sandbox.nodes import nodeobject
from sandbox.nodes.boot import Boot, boot_of
from sandbox.nodes.context import Context
from sandbox.nodes.host import Host
from sandbox.nodes.identity import Identity
from sandbox.nodes.machine import Machine
from sandbox.nodes.runtime.logs import LogUploader
from sandbox.settings import Clock, Settings

log = logging.getLogger("sandbox.nodes")

#: Simulated seconds between two looks at EC2, and the bounds of that in real ones.
LOOK, LEAST_LOOK, LARGEST_LOOK = 2.5, 0.25, 1.0
_DEAD = ("shutting-down", "terminated", "stopping", "stopped")


class Fleet:
    """Starts a machine for each instance of the cluster, and hands it the pods that are bound to its node."""

    def __init__(self, settings: Settings, clock: Clock, kube: Kube, aws: Aws) -> None:
        retrying = RetryingKube(kube)
        self._context = Context(
            settings=settings,
            clock=clock,
            kube=retrying,
            latencies=Latencies(settings.seed),
            recorder=Recorder(kube, "kubelet"),
            logs=LogUploader(kube),
            identity=Identity(aws, retrying, settings.cluster_name),
            folder=settings.state_dir / "nodes",
        )
        self._aws = aws
        self._shapes = Shapes(aws)
        self._informers = SharedInformers(kube)
        self._machines: dict[str, Machine] = {}
        self._attached: dict[str, Machine] = {}
        self._ended: set[str] = set()

    async def run(self) -> None:
        """Until cancelled; then nothing of it is left running."""
        shutil.rmtree(self._context.folder, ignore_errors=True)
        self._context.folder.mkdir(parents=True, mode=0o700)
        pods, nodes = self._informers("Pod"), self._informers("Node")
        pods.add_index("node", lambda pod: [pod["spec"]["nodeName"]] if pod["spec"].get("nodeName") else [])
        self._pods = pods
        await self._informers.synced()
        pods.add_handler(self._pod)
        nodes.add_handler(self._node)
        helpers = [asyncio.create_task(self._context.recorder.run()), asyncio.create_task(self._context.logs.run())]
        try:
            with self._context.settings.faults.heard_by(self._faults_changed):
                await self._follow_ec2()
        finally:
            for helper in helpers:
                helper.cancel()
            await asyncio.gather(*(machine.stop() for machine in self._machines.values()), return_exceptions=True)
            await asyncio.gather(*helpers, return_exceptions=True)
            await self._informers.close()
            shutil.rmtree(self._context.folder, ignore_errors=True)

    def _faults_changed(self) -> None:
        for machine in self._attached.values():
            machine.host.faults_changed()

    async def _follow_ec2(self) -> None:
        first = True
        while True:
            try:
                await self._look(first)
                first = False
            except (ClientError, BotoCoreError) as error:
                log.warning("EC2 did not answer: %s", error)
            await asyncio.sleep(min(LARGEST_LOOK, max(LEAST_LOOK, self._context.clock.real(LOOK))))

    async def _look(self, first: bool) -> None:
        owned = {"Name": f"tag:kubernetes.io/cluster/{self._context.settings.cluster_name}", "Values": ["owned"]}
        found = await self._aws.paginate("ec2", "describe_instances", "Reservations[].Instances[]", Filters=[owned])
        instances = {instance["InstanceId"]: instance for instance in found}
        for instance_id, instance in instances.items():
            state = instance["State"]["Name"]
            if state == "running" and instance_id not in self._machines and instance_id not in self._ended:
                await self._join(instance, first)
            elif state in _DEAD:
                await self._leave(instance_id, state)
            if state == "terminated":
                await self._forget(instance)
        for instance_id in [known for known in self._machines if known not in instances]:
            machine = self._machines[instance_id]
            await self._leave(instance_id, "terminated")
            await self._forget(machine.host.instance)

    async def _join(self, instance: dict[str, Any], first: bool) -> None:
        shape = await self._shapes.get(instance["InstanceType"])
        if shape is None:
            log.error("EC2 does not describe instance type %s", instance["InstanceType"])
            return
        # The cluster's own node group was there long before the sandbox's first look.
        grouped = nodeobject.GROUP_TAG in nodeobject.tags_of(instance)
        registration = await registration_of(self._aws, instance["InstanceId"]) if grouped else ({}, [])
        machine = Machine(
            Host(self._context, instance, shape, Boot() if grouped else await boot_of(self._aws, instance, shape)),
            existing=first and grouped,
            registration=registration,
            registered_as=self._attach,
            pods_on=self._pods_on,
        )
        self._machines[instance["InstanceId"]] = machine
        machine.start()

    async def _leave(self, instance_id: str, state: str) -> None:
        """The instance is powered off: what still runs on it is lost."""
        machine = self._machines.pop(instance_id, None)
        self._ended.add(instance_id)
        if machine is not None:
            self._attached.pop(machine.host.name, None)
            self._context.settings.losses.add(machine.running(state))
            await machine.stop()
            shutil.rmtree(machine.host.folder, ignore_errors=True)

    async def _forget(self, instance: dict[str, Any]) -> None:
        """Delete the Node of a terminated instance."""
        provider = nodeobject.provider_id(instance)
        for node in self._informers("Node").items():
            if node["spec"].get("providerID") == provider and not node["metadata"].get("deletionTimestamp"):
                self._context.recorder.event(
                    node,
                    "DeletingNode",
                    f"Deleting node {node['metadata']['name']} because it does not exist in the cloud provider",
                )
                await self._context.kube.delete("Node", node["metadata"]["name"], uid=node["metadata"]["uid"])

    # --- objects -------------------------------------------------------------------------------------------------

    def _attach(self, machine: Machine) -> None:
        """The machine's node is registered: pods that are bound to it may start."""
        self._attached[machine.host.name] = machine
        for pod in self._pods_on(machine.host.name):
            machine.pod_changed("ADDED", pod)

    def _pods_on(self, node_name: str) -> list[dict[str, Any]]:
        return self._pods.by_index("node", node_name)

    def _pod(self, change: Change, pod: dict[str, Any], _old: dict[str, Any] | None) -> None:
        machine = self._attached.get(pod["spec"].get("nodeName") or "")
        if machine is not None:
            machine.pod_changed(change, pod)

    def _node(self, change: Change, node: dict[str, Any], _old: dict[str, Any] | None) -> None:
        machine = self._attached.get(node["metadata"]["name"])
        if machine is not None and change != "DELETED":
            machine.host.node_changed(node)
