"""Releases the placeholders before the probes, and holds proven nodes for a while after them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.capacity import placeholders as rules
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM
from gpu_fleet.core.kubernetes.names import (
    COMPONENT_HEADROOM,
    COMPONENT_HOLD,
    PLACEHOLDER_PRIORITY_CLASS,
    SYSTEM_NAMESPACE,
)
from gpu_fleet.core.kubernetes.objects import node_of, pool_nodes
from gpu_fleet.core.nodes.pool_template import PoolTemplate, older_nodes
from gpu_fleet.core.probes.plan import pinned_to
from gpu_fleet.core.validation.user_pods import NO_USER_PODS, user_pods_by_node
from gpu_fleet.operators.base import run_name
from gpu_fleet.operators.capacity.placeholder_label import admit_placeholders
from gpu_fleet.operators.manifests import ensure_objects
from gpu_fleet.operators.pods import create_pod, delete_pods, end_headroom, placeholders
from gpu_fleet.operators.pool import PoolOperator
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER, SelectedPool
from gpu_fleet.operators.validation.nodes import protected_nodes


class ReleasePlaceholdersOperator(PoolOperator):
    """Deletes the pool's placeholders, so that their GPUs can be used; harmless to repeat.

    Pods that hold capacity are deleted too: all of them if this DAG holds the pool's nodes again afterwards, else only
    those of the nodes that are about to be probed. So is the headroom on those nodes; the clean-up opens it again.

    :returns: names of the pods that were deleted.
    """

    preconditions = (SelectedPool(), *CHANGES_CLUSTER)
    ui_color = "#e9f0fb"

    def act(self, context: Mapping[str, Any]) -> list[str]:
        pods = placeholders(self.kube, self.node_pool)
        holds = placeholders(self.kube, self.node_pool, COMPONENT_HOLD)
        headroom = placeholders(self.kube, self.node_pool, COMPONENT_HEADROOM)
        if headroom:
            chosen = set(protected_nodes(self, context).nodes)
            headroom = [pod for pod in headroom if node_of(pod) in chosen]
        if holds and not self._held_anew():
            probed = set(protected_nodes(self, context).nodes)
            holds = [pod for pod in holds if pinned_to(pod) in probed]
        pods += holds
        deleted = delete_pods(self.kube, pods) + end_headroom(self.kube, headroom)
        admit_placeholders(self.kube, self.of_pool())
        self.log.info("released %d placeholder(s) of pool %s", len(deleted), self.node_pool)
        return deleted

    def _held_anew(self) -> bool:
        after = self.get_flat_relatives(upstream=False)
        return any(isinstance(task, HoldCapacityOperator) and task.node_pool == self.node_pool for task in after)


class HoldCapacityOperator(PoolOperator):
    """Keeps the pool's nodes for ``capacity.hold`` minutes although no job uses them yet; 0 does nothing.

    One pod of the lowest priority holds each node: a user's pod preempts it at once, and it ends by itself.

    :returns: names of the pods.
    """

    preconditions = (SelectedPool(), *CHANGES_CLUSTER)
    ui_color = "#e9f0fb"

    def act(self, context: Mapping[str, Any]) -> list[str]:
        from gpu_fleet.hooks.cluster.pods import pods_on

        pool, minutes = self.this_pool, self.this_pool.capacity.hold
        if not minutes:
            return []
        ensure_objects(self.kube, self.spec, "system_namespaces", {SYSTEM_NAMESPACE})
        ensure_objects(self.kube, self.spec, "placeholder_priority", {PLACEHOLDER_PRIORITY_CLASS})
        names = []
        nodes = self.kube.list(NODE, label_selector=self.of_pool())
        # Only pods of others: probes of ours that are just ending keep no node in use.
        user_pods = user_pods_by_node(pods_on(self.kube, (node["metadata"]["name"] for node in nodes)))
        claims = self.kube.list(NODE_CLAIM, label_selector=self.of_pool())
        drifted = older_nodes(PoolTemplate.of(pool), pool.name, nodes, claims)
        seen = protected_nodes(self, context)
        proven = {*seen.nodes, *seen.untested}
        for node in pool_nodes(nodes, pool.name):
            if node.name in drifted or node.name not in proven:
                continue  # Of an older template, or surplus and broken: it was not validated.
            if user_pods.get(node.name, NO_USER_PODS).gpus or not rules.counts_as_capacity(node) or not node.gpus:
                continue  # In use: Karpenter does not consolidate it.
            manifest = rules.hold_pod(
                self.spec.name,
                pool,
                node.name,
                gpus=1,
                minutes=minutes,
                image=self.spec.validation.images.placeholder,
                run=run_name(context),
                run_label=self.run_label(context),
            )
            create_pod(self.kube, manifest)
            names.append(manifest["metadata"]["name"])
        self.log.info("pool %s: %d node(s) held for %d minutes", pool.name, len(names), minutes)
        return names
