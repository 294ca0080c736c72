"""Cleaning up after validation, whatever its result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.errors import TransientError
from gpu_fleet.core.kubernetes.kinds import NODE, NODE_CLAIM, POD, ObjectRef
from gpu_fleet.core.kubernetes.names import (
    COMPONENT_BURST,
    COMPONENT_PRE_PULL,
    LABEL_CAPACITY_TYPE,
    LABEL_INSTANCE_TYPE,
)
from gpu_fleet.core.kubernetes.objects import PoolNode, labels_of, name_of
from gpu_fleet.core.probes.plan import selector
from gpu_fleet.operators.base import task_states
from gpu_fleet.operators.capacity.placeholder_label import admit_placeholders
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.capacity.request import RequestCapacityOperator
from gpu_fleet.operators.nodes import unprotect_nodes
from gpu_fleet.operators.pods import delete_pods, placeholders
from gpu_fleet.operators.pool import FAILURE, PoolOperator, upstream_tasks
from gpu_fleet.operators.preconditions import GIVES_BACK, SelectedPool
from gpu_fleet.operators.proving import release_pool
from gpu_fleet.operators.validation.nodes import ProtectNodesOperator
from gpu_fleet.operators.validation.probes import SUMMARY, RunProbesOperator
from gpu_fleet.operators.validation.progress import remove_pods

#: Seconds after which a task that was ended from outside has no process any more: its supervisor learns of it with the
#: next heartbeat, at most every 5 s, and kills it 5 s after its signal (airflow sdk execution_time/supervisor.py).
ENDS_WITHIN_S = 15.0

#: XCom key of a sentence about nodes that are left, cost money and will not be removed automatically.
STILL_PAID = "still_paid"


class CleanUpValidationOperator(PoolOperator):
    """Deletes the pool's probe pods, of whatever run, waits until they are gone, and takes back our protection.

    Placeholders are deleted as well, and the label that they look at is removed: after a failure before validation they
    would keep buying and holding nodes.
    Meant to run whatever happened before, as a teardown task (``phases/common.py``); harmless to repeat.

    A task that a person ends, or whose run is marked failed, runs on for some seconds, until its supervisor learns of
    it: it may protect nodes and create pods or placeholders that the first look did not see. So after a task that
    ended without a result everything is checked twice.

    A pod that does not end on a node which is not Ready, or gone, is deleted by force: no kubelet will confirm its end.

    Headroom whose window is open is opened again, because it had to make room for the probes.

    After a failed wait for capacity, or a proof that left nodes of a gated pool closed, it names the nodes that exist
    and will never be removed, with their price: they are left to a person, who may want to see what is wrong with them.
    The XCom ``still_paid`` says so in a sentence.

    :returns: ``{"pods": [names deleted], "placeholders": [names deleted], "unprotected": [node names], "unfinished":
        [{"nodeClaim", "node", "instanceType", "why", "usdPerHour", "usdPerHourIsAtMost"}]}``.
    :raises TransientError: ``ProbesStay``, after all else is done: pods do not end on a node that is Ready.
    """

    preconditions = (SelectedPool(), *GIVES_BACK)
    ui_color = "#f6eefb"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.validation.judge import PROBES_STAY

        found, stay = self._remove()
        if cut_short := self._cut_short(context):
            self.log.info(
                "looking again in %.0f s, when the process of %s has ended", ENDS_WITHIN_S, ", ".join(cut_short)
            )
            time.sleep(ENDS_WITHIN_S)
            again, stay = self._remove()
            found = {key: [*names, *again[key]] for key, names in found.items()}
        self.log.info(
            "%d probe pod(s) and %d placeholder(s) removed, %d node(s) unprotected",
            *(len(names) for names in found.values()),
        )
        unfinished = self._unfinished(context)
        if self.this_pool.capacity.headroom:
            from gpu_fleet.operators.capacity.headroom import open_headroom

            open_headroom(self, context, self.this_pool)
        if stay:
            where = "; ".join(f"{node}: {', '.join(names[:5])}" for node, names in sorted(stay.items()))
            raise TransientError(
                f"probe pods of pool {self.node_pool} do not end and may hold GPUs, on node {where}: look for a "
                "process that hangs in the driver, then replace the node",
                reason=PROBES_STAY,
            )
        return {**found, "unfinished": unfinished}

    def _unfinished(self, context: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The nodes that an unsuccessful wait for capacity leaves, and those that a gated pool's proof did not open."""
        from gpu_fleet.core.capacity.unfinished import unfinished_message, unfinished_nodes
        from gpu_fleet.hooks.cluster.prices import prices_for

        states = set(task_states(context, upstream_tasks(self, AwaitCapacityOperator)).values())
        gave_up = not states.isdisjoint({"failed", "upstream_failed"})
        if not gave_up and not self.spec.gated(self.this_pool):
            return []
        claims = self.kube.list(NODE_CLAIM, label_selector=self.of_pool())
        if not gave_up:
            closed = self._closed()
            claims = [claim for claim in claims if (claim.get("status") or {}).get("nodeName") in closed]
        labels = [labels_of(claim) for claim in claims]
        types = [each[LABEL_INSTANCE_TYPE] for each in labels if LABEL_INSTANCE_TYPE in each]
        prices = prices_for(self.spec, types, spot=any(each.get(LABEL_CAPACITY_TYPE) == "spot" for each in labels))
        nodes = unfinished_nodes(claims, self.node_pool, prices)
        if nodes:
            message = unfinished_message(self.spec.name, nodes, prices)
            self.log.warning("pool %s: %s", self.node_pool, message)
            context["ti"].xcom_push(STILL_PAID, message)
        return [node.to_json() for node in nodes]

    def _closed(self) -> set[str]:
        """The nodes of a gated pool that a proof has not opened: Karpenter removes none of them."""
        from gpu_fleet.core.admission.mark import is_kept_closed

        return {name_of(node) for node in self.kube.list(NODE, label_selector=self.of_pool()) if is_kept_closed(node)}

    def _remove(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """What was removed, and node -> the probe pods that do not end there."""
        released = delete_pods(self.kube, placeholders(self.kube, self.node_pool))
        # A run that was killed during its burst leaves those pods, too.
        released += delete_pods(self.kube, placeholders(self.kube, self.node_pool, COMPONENT_BURST))
        released += delete_pods(self.kube, placeholders(self.kube, self.node_pool, COMPONENT_PRE_PULL))
        admit_placeholders(self.kube, self.of_pool())
        if self.spec.gated(self.this_pool):
            release_pool(self.kube, self.node_pool)
        unprotected = unprotect_nodes(self.kube, self.of_pool())
        namespace = self.spec.validation.namespace
        deleted, stay = remove_pods(
            self.kube,
            namespace,
            selector(self.node_pool),
            float(self.spec.deadlines.cleanup.seconds),
        )
        for node in [name for name in stay if not self._serves(name)]:
            for name in stay.pop(node):
                self.log.warning("deleting pod %s by force: its node %s is not Ready, or gone", name, node)
                self.kube.delete(ObjectRef(POD, name, namespace), grace_seconds=0)
        return {"pods": deleted, "placeholders": released, "unprotected": unprotected}, stay

    def _serves(self, node: str) -> bool:
        found = self.kube.get(ObjectRef(NODE, node)) if node else None
        return found is not None and PoolNode.of(found).ready

    def _cut_short(self, context: Mapping[str, Any]) -> list[str]:
        """The pool's tasks that failed without leaving a result: they were probably ended from outside."""
        ti = context["ti"]
        leaves = {
            **dict.fromkeys(upstream_tasks(self, RequestCapacityOperator), "return_value"),
            # Its retries request capacity, too.
            **dict.fromkeys(upstream_tasks(self, AwaitCapacityOperator), FAILURE),
            **dict.fromkeys(upstream_tasks(self, ProtectNodesOperator), "return_value"),
            **dict.fromkeys(upstream_tasks(self, RunProbesOperator), SUMMARY),
        }
        return [
            task_id
            for task_id, key in leaves.items()
            if set(task_states(context, [task_id]).values()) == {"failed"}
            and all(ti.xcom_pull(task_ids=task_id, key=each) is None for each in {key, FAILURE})
        ]
