"""Lets go of the placeholders, and keeps nodes that were proven for a while longer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.capacity import placeholders as rules
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM
from gpu_fleet.core.kubernetes.names import COMPONENT_HOLD, SYSTEM_NAMESPACE
from gpu_fleet.core.nodes.pool_template import PoolTemplate, older_nodes
from gpu_fleet.operators.base import run_name
from gpu_fleet.operators.capacity.standing import unmark_standing
from gpu_fleet.operators.objects.pods import create_pod, delete_pods, ensure_objects, placeholders
from gpu_fleet.operators.pool import PoolOperator


class ReleasePlaceholdersOperator(PoolOperator):
    """Deletes the pool's placeholders, so that their GPUs can be used; harmless to repeat.

    So are pods that hold capacity: all of them where this DAG holds the pool's nodes anew afterwards, else only those
    of the nodes that are about to be probed.

    :returns: names of the pods that were deleted.
    """

    changes_cluster = True
    ui_color = "#e9f0fb"

    def act(self, context: Mapping[str, Any]) -> list[str]:
        from gpu_fleet.core.probes.plan import pinned_to

        pods = placeholders(self.kube, self.node_pool)
        holds = placeholders(self.kube, self.node_pool, COMPONENT_HOLD)
        if holds and not self._held_anew():
            from gpu_fleet.operators.validation.nodes import protected_nodes

            probed = set(protected_nodes(self, context).nodes)
            holds = [pod for pod in holds if pinned_to(pod) in probed]
        pods += holds
        deleted = delete_pods(self.kube, pods)
        unmark_standing(self.kube, self.of_pool())
        self.log.info("released %d placeholder(s) of pool %s", len(deleted), self.node_pool)
        return deleted

    def _held_anew(self) -> bool:
        after = self.get_flat_relatives(upstream=False)
        return any(isinstance(task, HoldCapacityOperator) and task.node_pool == self.node_pool for task in after)


class HoldCapacityOperator(PoolOperator):
    """Keeps the pool's nodes for ``capacity.hold`` minutes although no job uses them yet; 0 does nothing.

    One pod per node holds it with the lowest priority: a user's pod takes its place at once, and it ends by itself.

    :returns: names of the pods.
    """

    changes_cluster = True
    ui_color = "#e9f0fb"

    def act(self, context: Mapping[str, Any]) -> list[str]:
        from gpu_fleet.core.kubernetes.names import PLACEHOLDER_PRIORITY_CLASS
        from gpu_fleet.core.kubernetes.objects import pool_nodes
        from gpu_fleet.core.validation.others import NOBODY, others_by_node
        from gpu_fleet.hooks.cluster.pods import pods_on
        from gpu_fleet.operators.validation.nodes import protected_nodes

        pool, minutes = self.this_pool, self.this_pool.capacity.hold
        if not minutes:
            return []
        ensure_objects(self.kube, self.spec, "system_namespaces", {SYSTEM_NAMESPACE})
        ensure_objects(self.kube, self.spec, "placeholder_priority", {PLACEHOLDER_PRIORITY_CLASS})
        names = []
        nodes = self.kube.list(NODE, label_selector=self.of_pool())
        # Without our own: probes that are just ending keep no node.
        others = others_by_node(pods_on(self.kube, (node["metadata"]["name"] for node in nodes)))
        claims = self.kube.list(NODE_CLAIM, label_selector=self.of_pool())
        drifted = older_nodes(PoolTemplate.of(pool), pool.name, nodes, claims)
        seen = protected_nodes(self, context)
        proven = {*seen.nodes, *seen.untested}
        for node in pool_nodes(nodes, pool.name):
            if node.name in drifted or node.name not in proven:
                continue  # of an older template, or beyond those that are wanted and broken: none that was validated
            if others.get(node.name, NOBODY).gpus or not rules.counts_as_capacity(node) or not node.gpus:
                continue  # in use: nobody will consolidate it
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
