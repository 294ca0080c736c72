"""Has the pool's new nodes pull images while they are being proven."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.kubernetes.kinds import EVENT
from gpu_fleet.core.kubernetes.names import COMPONENT_PRE_PULL, LABEL_RUN, PLACEHOLDER_PRIORITY_CLASS, SYSTEM_NAMESPACE
from gpu_fleet.core.kubernetes.objects import labels_of
from gpu_fleet.operators.base import run_name, wait_started
from gpu_fleet.operators.capacity.prove import AwaitCapacityOperator
from gpu_fleet.operators.manifests import ensure_objects
from gpu_fleet.operators.pods import create_pod, delete_pods, placeholders
from gpu_fleet.operators.pool import PoolOperator, reported_failure, upstream_tasks
from gpu_fleet.operators.preconditions import CHANGES_CLUSTER, SelectedPool
from gpu_fleet.triggers.waiting import await_gate, conclude

#: How often the events about pulls are read again for seconds that are still missing, and seconds in between.
LOOKS, LOOK_S = 4, 1.0


class PrePullImagesOperator(PoolOperator):
    """Makes every node that the pool was waited for pull ``capacity.prePull``, and waits until all have.

    One pod per node and image, pinned to its node, without a GPU; nothing of an image is run. The pods are removed when
    the images are there; after a failure, or if the task is killed, the pool's clean-up removes them, and they end by
    themselves after ``deadlines.capacity``.

    :returns: ``{"pulls": {node: {image: seconds, or null if no event says it}}}``.
    :raises GateRefused: ``PrePullFailed``: a node cannot pull an image.
    :raises DeadlinePassed: naming the node and the image, after the spec's ``deadlines.capacity``.
    """

    preconditions = (SelectedPool(), *CHANGES_CLUSTER)
    ui_color = "#e9f0fb"

    def act(self, context: Mapping[str, Any]) -> dict[str, Any]:
        # Here, so that a DAG file does not load what only its tasks need.
        from gpu_fleet.core.capacity.pre_pull import pre_pull_pod

        pool, nodes = self.this_pool, self._nodes(context)
        images = pool.capacity.pre_pull
        if not nodes or not images:
            self.log.info("pool %s: no node is to pull anything", pool.name)
            return {"pulls": {}}
        mine, run = self.run_label(context), run_name(context)
        # What an earlier run left ended then, and its image may be gone again.
        left = [
            pod for pod in placeholders(self.kube, pool.name, COMPONENT_PRE_PULL) if labels_of(pod)[LABEL_RUN] != mine
        ]
        delete_pods(self.kube, left)
        ensure_objects(self.kube, self.spec, "system_namespaces", {SYSTEM_NAMESPACE})
        ensure_objects(self.kube, self.spec, "placeholder_priority", {PLACEHOLDER_PRIORITY_CLASS})
        seconds, started = float(self.spec.deadlines.capacity), wait_started(context)
        for node in nodes:
            for image in images:
                manifest = pre_pull_pod(
                    self.spec.name, pool, node, image, lifetime_s=int(seconds), run=run, run_label=mine
                )
                create_pod(self.kube, dict(manifest))
        self.log.info("pool %s: %d node(s) pull %s", pool.name, len(nodes), ", ".join(images))
        args = {"pool": pool.name, "nodes": nodes, "images": list(images)}
        with reported_failure(context):
            verdict = await_gate(
                self, context, "images_pulled", args, seconds, deadline=started + seconds, started=started
            )
        return self._end(verdict.message, verdict.data)

    def execute_complete(self, context: Mapping[str, Any], event: Mapping[str, Any]) -> dict[str, Any]:
        self.prepare(context)
        with reported_failure(context):
            verdict = conclude(event)
        return self._end(verdict.message, verdict.data)

    def _end(self, message: str, data: Mapping[str, Any] | None) -> dict[str, Any]:
        pulls = self._measured(dict((data or {}).get("pulls") or {}))
        for node, images in pulls.items():
            for image, took in images.items():
                self.log.info("node %s pulled %s in %s s", node, image, "?" if took is None else f"{took:.1f}")
        deleted = delete_pods(self.kube, placeholders(self.kube, self.node_pool, COMPONENT_PRE_PULL))
        self.log.info("%s; %d pod(s) removed", message, len(deleted))
        return {"pulls": pulls}

    def _measured(self, pulls: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
        """The seconds that the gate has seen, and those of events that came after the pods' status.

        A kubelet sends events beside the status, and client-go's recorder sends them one after the other
        (kubernetes/client-go ``tools/record/event.go``), so the last ones may arrive later.
        """
        from gpu_fleet.core.capacity.pre_pull import measured

        for look in range(LOOKS):
            if all(took is not None for images in pulls.values() for took in images.values()):
                break
            if look:
                time.sleep(LOOK_S)
            pods = placeholders(self.kube, self.node_pool, COMPONENT_PRE_PULL)
            events = self.kube.list(EVENT, SYSTEM_NAMESPACE, field_selector="reason=Pulled")
            for node, images in measured(pods, events).items():
                for image, took in images.items():
                    if took is not None and node in pulls and image in pulls[node]:
                        pulls[node][image] = took
        return pulls

    def _nodes(self, context: Mapping[str, Any]) -> list[str]:
        """The nodes that the pool's wait for capacity has found."""
        for task_id in upstream_tasks(self, AwaitCapacityOperator):
            value = context["ti"].xcom_pull(task_ids=task_id)
            if isinstance(value, Mapping):
                return [str(node) for node in value.get("nodes") or ()]
        return []
