"""Which nodes of a pool are validated, and keeping Karpenter from removing them meanwhile."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.sdk import Asset

from gpu_fleet.core.device_plugin.gpu_count import reported_fault
from gpu_fleet.core.errors import GateFailed, SpecError
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, ObjectRef
from gpu_fleet.core.kubernetes.objects import PoolNode, name_of, pool_claims, pool_nodes
from gpu_fleet.core.nodes.pool_template import PoolTemplate, older_nodes, sentence
from gpu_fleet.core.pools.assets import Topic, blamed_nodes, uri
from gpu_fleet.core.validation.chosen import ChosenNodes
from gpu_fleet.core.validation.waves import sample
from gpu_fleet.operators.base import cluster_of_dag, run_name
from gpu_fleet.operators.drifted import note_drifted
from gpu_fleet.operators.nodes import protect_nodes, swap_node
from gpu_fleet.operators.pool import PoolOperator, hardware, upstream_tasks
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER, SelectedPool
from gpu_fleet.operators.proving import hold_pool
from gpu_fleet.operators.validation.stages import note_arrivals

#: Most events of a pool that are read: more failures in a row than that repeat each other.
EVENTS = 20
#: XCom key of a sentence about nodes that stand on a lower rung of the pool's ladder.
LOWER_RUNGS = "lower_rungs"


class ProtectNodesOperator(PoolOperator):
    """Keeps Karpenter from removing the pool's nodes while they are validated.

    Nodes that are protected already are left as they are, and stay protected afterwards. Cordoned nodes take no probe,
    and nodes that have only just joined are not initialized: both are left out. So are nodes of an older template than
    the pool's present one: they keep what they were launched with, and are named as drifted. Of a gated pool also nodes
    that are not initialized because they are not proven yet are validated; of a pool that is no longer gated such nodes
    are opened. Quarantined nodes are
    tested by a revalidation, which is what releases them; they do not count as the capacity that was waited for. The
    run's Param ``node`` leaves out all nodes but one. If there are more nodes than ``validation.nodes.sample``, a
    sample is chosen, another one in each run; those for which the pool was last reported not ready are always in it,
    or the pool could become ready again without them.

    :param all_wanted: fail if fewer than ``wantedNodes`` are left to validate. Without it a pool whose nodes were
        removed a moment ago is 'Idle', which is right for a revalidation and wrong after capacity was waited for. With
        it surplus nodes with a wrong number of GPUs or broken hardware are left out, as by the gate ``pool_capacity``.
    :param only_unproven: leave out the nodes that take users' pods already; for the proof of nodes that Karpenter has
        added to a gated pool.

    :returns: :class:`~gpu_fleet.core.validation.chosen.ChosenNodes` as JSON; :func:`protected_nodes` reads it. XCom
        ``drifted`` lists the pool's nodes that have drifted, and why; ``arrivals`` has the moments of the chosen nodes;
        ``lower_rungs`` says which stand on a lower rung of its ladder.
    :raises GateFailed: ``NodesMissing``, see ``all_wanted``.
    """

    preconditions = (SelectedPool(), *CHANGES_CLUSTER)
    ui_color = "#f6eefb"

    def __init__(self, *, all_wanted: bool = False, only_unproven: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.all_wanted = all_wanted
        self.only_unproven = only_unproven
        cluster = cluster_of_dag(self)
        # The pool's events, newest first; a node that failed counts until the pool has been proven again.
        topics = (Topic.NOT_READY, Topic.VALIDATED) if cluster else ()
        self.history = [Asset(uri(cluster, self.node_pool, topic)) for topic in topics]
        self.inlets.extend(self.history)

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        pool = self.this_pool
        gpus = hardware(self.spec, pool)
        found = [self._opened(node) for node in self.kube.list(NODE, label_selector=self.of_pool())]
        known = self.kube.list(NODE_CLAIM, label_selector=self.of_pool())
        template = PoolTemplate.of(pool)
        drifted = older_nodes(template, pool.name, found, known)
        for name, why in drifted.items():
            self.log.warning("pool %s: %s: left out", pool.name, sentence(name, why))
        everything = pool_nodes(found, pool.name)
        present = [node for node in everything if node.name not in drifted]
        nodes = [node for node in present if self._is_finished(node) and self._takes_probes(node)]
        if self.only_unproven:
            everything = [node for node in everything if node.unproven]
            nodes = [node for node in nodes if node.unproven]
        only = context["params"].get("node")
        if only:
            nodes = [node for node in nodes if node.name == only]
        if self.all_wanted and pool.wanted_nodes:
            good = [
                node
                for node in nodes
                if node.gpus == gpus.count * pool.replicas and reported_fault(node.name, node.hardware) is None
            ]
            if len(nodes) > len(good) >= pool.needed_nodes:
                # Capacity was sufficient without these nodes; probing them would fail the pool after all.
                broken = ", ".join(node.name for node in nodes if node not in good)
                self.log.warning(
                    "pool %s: left out, wrong number of GPUs or broken hardware: %s; delete them", pool.name, broken
                )
                nodes = good
        if self.all_wanted and len(nodes) < pool.needed_nodes:
            raise GateFailed(
                f"pool {pool.name}: {len(nodes)} of {pool.wanted_nodes} wanted node(s) can be validated; nodes were "
                "removed or cordoned after they had been waited for: start another run",
                reason="NodesMissing",
            )
        idle = "" if nodes else self._why_idle(everything, only, drifted)
        if idle:
            self.log.warning("%s", idle)
        failed = self._failed_before(context)
        nodes, untested = self._sample(context, nodes, failed)
        protected = protect_nodes(self.kube, nodes, run_name(context))
        if self.spec.gated(pool) and any(node.unproven for node in nodes):
            self._hold(context)
        now_known = self.kube.list(NODE_CLAIM, label_selector=self.of_pool())
        claims = pool_claims(now_known, pool.name)
        here = {node.name for node in nodes}
        # The placeholders, which say since when the nodes were waited for, are deleted by the next task.
        note_arrivals(self, context, [node for node in found if name_of(node) in here], now_known)
        note_drifted(self, context, pool.name)
        self._note_lower_rungs(context, everything)
        self.log.info(
            "pool %s: %d node(s) to validate, %d protected, %d left for other runs",
            *(pool.name, len(nodes), len(protected), len(untested)),
        )
        return ChosenNodes(
            nodes=[node.name for node in nodes],
            physical=gpus.count,
            replicas=pool.replicas,
            untested=untested,
            idle=idle,
            blamed=[n.name for n in present if n.name in failed and not n.cordoned and not n.quarantined],
            drifted=drifted,
            node_claims=[claim.name for claim in claims],
            claims={claim.name: claim.node for claim in claims if claim.node},
            protected=protected,
            instances={node.name: node.instance() for node in nodes},
        ).to_json()

    def _note_lower_rungs(self, context: Mapping[str, Any], nodes: list[PoolNode]) -> None:
        """Say which nodes stand on a lower rung of the pool's ladder, and what would be cheaper."""
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.capacity.ladder import lower_nodes, lower_sentence
        from gpu_fleet.hooks.cluster.prices import prices_of_pools

        if found := lower_nodes(self.this_pool, nodes):
            sentence = lower_sentence(self.node_pool, found, prices_of_pools(self.spec, [self.this_pool]))
            self.log.warning("%s", sentence)
            context["ti"].xcom_push(LOWER_RUNGS, sentence)

    def _hold(self, context: Mapping[str, Any]) -> None:
        """Before the probes are there, which Karpenter would count against users' pods that wait for the proof."""
        count = hold_pool(self.kube, self.node_pool, run_name(context))
        if count is not None:
            self.log.info("pool %s buys no node beyond its %d until the proof is over", self.node_pool, count)

    def _opened(self, node: dict[str, Any]) -> dict[str, Any]:
        """The node, without the startup taint of a pool that was gated once: an open pool asks for no proof."""
        from gpu_fleet.core.admission.mark import is_unproven, opened

        if not is_unproven(node) or self.spec.gated(self.this_pool) or not self.this_pool.manage:
            return node
        name = str(node["metadata"]["name"])
        if swap_node(self.kube, name, opened):
            self.log.info("node %s takes users' pods: pool %s is no longer gated", name, self.node_pool)
        return self.kube.get(ObjectRef(NODE, name)) or node

    def _why_idle(self, present: list[PoolNode], only: str | None, drifted: Mapping[str, tuple[str, ...]]) -> str:
        """Why none of the existing nodes takes probes; empty if there are no nodes."""
        asked = [node for node in present if only in (None, "", node.name)]
        if only and not asked:
            return f"node {only} is gone, or is being removed"
        old = [f"{node.name} ({'; '.join(drifted[node.name])})" for node in asked if node.name in drifted]
        cordoned = [n.name for n in asked if n.name not in drifted and not self._takes_probes(n)]
        unfinished = [n.name for n in asked if n.name not in drifted and n.name not in cordoned]
        causes = [("drifted", old), ("cordoned", cordoned), ("not initialized yet", unfinished)]
        words = "; ".join(f"{cause}: {', '.join(names[:5])}" for cause, names in causes if names)
        return f"no node takes probes: {words}" if words else ""

    def _is_finished(self, node: PoolNode) -> bool:
        """Whether to test a node: one that has been Ready for long without being initialized will fail its verdict."""
        if node.usable or self.all_wanted:
            return node.usable
        return node.ready_since is not None and self.kube.now() - node.ready_since > self.spec.deadlines.prove.seconds

    def _sample(
        self, context: Mapping[str, Any], nodes: list[PoolNode], failed: set[str]
    ) -> tuple[list[PoolNode], list[str]]:
        count = self.spec.validation.nodes.sample
        if count is None or len(nodes) <= count:
            return nodes, []
        always = {node.name for node in nodes if node.quarantined or node.unproven} | failed
        chosen = set(sample((node.name for node in nodes), count, run_name(context), always))
        return [n for n in nodes if n.name in chosen], [n.name for n in nodes if n.name not in chosen]

    def _failed_before(self, context: Mapping[str, Any]) -> set[str]:
        """The nodes that the pool's ``not-ready`` events blame since its last proof, without those that passed later.

        One event is not enough: a run may have tested other nodes only, or a node may have been busy.
        """
        if not self.history:
            return set()
        bad, good = (context["inlet_events"][asset].ascending(False) for asset in self.history)
        proven = max((event.timestamp for event in good.limit(1)), default=None)
        since = [event for event in bad.limit(EVENTS) if proven is None or event.timestamp > proven]
        return blamed_nodes((event.extra or {}).get("nodes") for event in since)

    def _takes_probes(self, node: PoolNode) -> bool:
        if node.quarantined:
            return not self.all_wanted
        return not node.cordoned


def protected_nodes(operator: PoolOperator, context: Mapping[str, Any]) -> ChosenNodes:
    """What the pool's :class:`ProtectNodesOperator` of this run found.

    :raises SpecError: if there is no such task before this one, or it has not succeeded.
    """
    for task_id in upstream_tasks(operator, ProtectNodesOperator):
        value = context["ti"].xcom_pull(task_ids=task_id)
        if isinstance(value, Mapping) and "nodes" in value:
            return ChosenNodes.from_json(value)
    raise SpecError(
        f"task {operator.task_id}: no task before it has protected the nodes of pool {operator.node_pool}",
        field="node_pool",
        remedy="put a ProtectNodesOperator for the same pool before it, and clear that",
    )
