"""The Deployment controller: rolls a Deployment's pods from one ReplicaSet to the next.

Source: kubernetes/kubernetes ``pkg/controller/deployment`` (``sync.go``, ``rolling.go``, ``progress.go``).
"""

from __future__ import annotations

import copy

from sandbox.controllers.base import Controller
from sandbox.controllers.objects import (
    Object,
    age,
    condition,
    controller_of,
    controller_uids,
    hash_of,
    is_deleting,
    meta,
    owner_reference,
)
from sandbox.controllers.workloads.rollout import (
    HASH_LABEL,
    REVISION,
    complete,
    fences,
    progress,
    revision_of,
    settled,
    with_updated,
    without_hash,
)
from sandbox.kube.informers import Change
from sandbox.kube.resources import ApiError

DESIRED = "deployment.kubernetes.io/desired-replicas"
MAXIMUM = "deployment.kubernetes.io/max-replicas"
#: Annotations of a Deployment that its ReplicaSets do not get.
NOT_COPIED = {
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    DESIRED,
    MAXIMUM,
    "deprecated.deployment.rollback.to",
}


class DeploymentController(Controller):
    """Keys are Deployments."""

    name = "deployment-controller"

    def wire(self) -> None:
        self.deployments = self.watch_keys("Deployment")
        self.replicasets = self.watch("ReplicaSet", self._replicaset_changed)
        self.replicasets.add_index("owner", controller_uids)
        self.pods = self.watch("Pod", self._pod_changed)
        self.pods.add_index("owner", controller_uids)

    def _replicaset_changed(self, _change: Change, new: Object, _old: Object | None) -> None:
        owner = controller_of(new)
        if owner is not None and owner["kind"] == "Deployment":
            self.queue.add((meta(new)["namespace"], owner["name"]))

    def _pod_changed(self, change: Change, new: Object, _old: Object | None) -> None:
        # Recreate starts its new pods only when the last old one is gone.
        owner = controller_of(new) if change == "DELETED" else None
        if owner is None or owner["kind"] != "ReplicaSet":
            return
        replicaset = self.context.informers("ReplicaSet").get(owner["name"], meta(new)["namespace"])
        if replicaset is not None:
            self._replicaset_changed("MODIFIED", replicaset, None)

    async def reconcile(self, key: tuple[str, str]) -> None:
        deployment = self.deployments.get(key[1], key[0])
        if deployment is None or is_deleting(deployment):
            return
        try:
            new, old = await self._replicasets(deployment, create=not deployment["spec"].get("paused"))
            if deployment["spec"].get("paused"):
                if len([each for each in [*old, new] if each and each["spec"]["replicas"]]) <= 1 and new is not None:
                    await self._scale(deployment, new, deployment["spec"]["replicas"])
            elif new is not None:
                if (deployment["spec"].get("strategy") or {}).get("type") == "Recreate":
                    await self._recreate(deployment, new, old)
                else:
                    await self._roll(deployment, new, old)
                await self._clean_up(deployment, new)
        finally:
            await self._update_status(deployment)

    # --- ReplicaSets -------------------------------------------------------------------------------------------

    def _owned(self, deployment: Object) -> list[Object]:
        owned = self.replicasets.by_index("owner", meta(deployment)["uid"])
        return sorted(
            (each for each in owned if not is_deleting(each)), key=lambda each: meta(each)["creationTimestamp"]
        )

    def _newest(self, deployment: Object) -> tuple[Object | None, list[Object]]:
        template = deployment["spec"]["template"]
        owned = self._owned(deployment)
        new = next((each for each in owned if without_hash(each["spec"]["template"]) == without_hash(template)), None)
        return new, [each for each in owned if each is not new]

    async def _replicasets(self, deployment: Object, *, create: bool) -> tuple[Object | None, list[Object]]:
        """The ReplicaSet of the present template and all others; revisions are numbered as rollouts happen."""
        new, old = self._newest(deployment)
        highest = max((revision_of(each) for each in old), default=0)
        if new is None:
            if not create:
                return None, old
            new = await self._create(deployment, highest + 1, old)
        revision = str(max(highest + 1, revision_of(new)))
        if revision_of(new) != int(revision):
            new = await self._annotate("ReplicaSet", new, {REVISION: revision})
        if (meta(deployment).get("annotations") or {}).get(REVISION) != revision:
            await self._annotate("Deployment", deployment, {REVISION: revision})
        return new, old

    async def _annotate(self, kind: str, obj: Object, annotations: dict[str, str]) -> Object:
        answer = await self.kube.patch(
            kind, meta(obj)["name"], {"metadata": {"annotations": annotations}}, meta(obj)["namespace"]
        )
        await self.context.informers(kind).caught_up(answer)
        return answer

    async def _create(self, deployment: Object, revision: int, old: list[Object]) -> Object:
        template = copy.deepcopy(without_hash(deployment["spec"]["template"]))
        digest = hash_of(template)
        labels = dict((template.get("metadata") or {}).get("labels") or {}) | {HASH_LABEL: digest}
        template.setdefault("metadata", {})["labels"] = labels
        selector = copy.deepcopy(deployment["spec"]["selector"])
        selector.setdefault("matchLabels", {})[HASH_LABEL] = digest
        replicas = self._new_size(deployment, 0, old)
        annotations = {
            name: value for name, value in (meta(deployment).get("annotations") or {}).items() if name not in NOT_COPIED
        }
        annotations |= {REVISION: str(revision)} | self._size_annotations(deployment)
        body: Object = {
            "apiVersion": "apps/v1",
            "kind": "ReplicaSet",
            "metadata": {
                "name": f"{meta(deployment)['name']}-{digest}",
                "namespace": meta(deployment)["namespace"],
                "labels": labels,
                "annotations": annotations,
                "ownerReferences": [owner_reference(deployment)],
            },
            "spec": {"replicas": replicas, "selector": selector, "template": template},
        }
        if deployment["spec"].get("minReadySeconds"):
            body["spec"]["minReadySeconds"] = deployment["spec"]["minReadySeconds"]
        try:
            created = await self.kube.create(body)
        except ApiError as error:
            if not error.already_exists:
                raise
            created = await self.kube.get("ReplicaSet", meta(body)["name"], meta(body)["namespace"])
        else:
            if replicas:
                self._scaling_event(deployment, created, 0, replicas)
            reason = ("NewReplicaSetCreated", f'Created new replica set "{meta(created)["name"]}"')
            await self._set_progress(deployment, "True", *reason)
        await self.replicasets.caught_up(created)
        return created

    async def _scale(self, deployment: Object, replicaset: Object, size: int) -> bool:
        before = replicaset["spec"]["replicas"]
        sizes = self._size_annotations(deployment)
        annotations = meta(replicaset).get("annotations") or {}
        if before == size and all(annotations.get(name) == value for name, value in sizes.items()):
            return False
        body = {"metadata": {"annotations": sizes}, "spec": {"replicas": size}}
        answer = await self.kube.patch("ReplicaSet", meta(replicaset)["name"], body, meta(replicaset)["namespace"])
        await self.replicasets.caught_up(answer)
        if before != size:
            self._scaling_event(deployment, replicaset, before, size)
        return bool(before != size)

    def _scaling_event(self, deployment: Object, replicaset: Object, before: int, after: int) -> None:
        direction = "up" if after > before else "down"
        text = f"Scaled {direction} replica set {meta(replicaset)['name']} from {before} to {after}"
        self.event(deployment, "ScalingReplicaSet", text)

    def _size_annotations(self, deployment: Object) -> dict[str, str]:
        replicas = deployment["spec"]["replicas"]
        surge = 0 if deployment["spec"].get("strategy", {}).get("type") == "Recreate" else fences(deployment)[0]
        return {DESIRED: str(replicas), MAXIMUM: str(replicas + surge)}

    # --- rollouts ----------------------------------------------------------------------------------------------

    def _new_size(self, deployment: Object, present: int, old: list[Object]) -> int:
        """How large the new ReplicaSet may be now."""
        wanted: int = deployment["spec"]["replicas"]
        if (deployment["spec"].get("strategy") or {}).get("type") == "Recreate":
            return wanted if not any(each["spec"]["replicas"] or self._has_pods(each) for each in old) else 0
        surge, _ = fences(deployment)
        total = present + sum(each["spec"]["replicas"] for each in old)
        if total >= wanted + surge:
            return present
        return int(min(wanted, present + wanted + surge - total))

    def _has_pods(self, replicaset: Object) -> bool:
        return bool(self.pods.by_index("owner", meta(replicaset)["uid"]))

    async def _recreate(self, deployment: Object, new: Object, old: list[Object]) -> None:
        for replicaset in old:
            await self._scale(deployment, replicaset, 0)
        size = self._new_size(deployment, new["spec"]["replicas"], self._newest(deployment)[1])
        await self._scale(deployment, new, size)

    async def _roll(self, deployment: Object, new: Object, old: list[Object]) -> None:
        wanted = deployment["spec"]["replicas"]
        size = new["spec"]["replicas"]
        await self._scale(deployment, new, wanted if size > wanted else self._new_size(deployment, size, old))
        new_now, old = self._newest(deployment)
        new = new_now or new
        _, unavailable = fences(deployment)
        # Pods that may go: all there are, less the floor, less those of the new set that are not available yet.
        total = new["spec"]["replicas"] + sum(each["spec"]["replicas"] for each in old)
        new_unavailable = new["spec"]["replicas"] - (new.get("status") or {}).get("availableReplicas", 0)
        spare = total - (wanted - unavailable) - max(0, new_unavailable)
        for replicaset in old:  # those that are not available first: they cost nothing
            have = replicaset["spec"]["replicas"]
            sick = have - (replicaset.get("status") or {}).get("availableReplicas", 0)
            if have and sick > 0 and spare > 0:
                take = min(sick, spare)
                await self._scale(deployment, replicaset, have - take)
                spare -= take
        _, old = self._newest(deployment)
        available = sum((each.get("status") or {}).get("availableReplicas", 0) for each in [new, *old])
        healthy_spare = min(spare, available - (wanted - unavailable))
        for replicaset in old:
            have = replicaset["spec"]["replicas"]
            if have and healthy_spare > 0:
                take = min(have, healthy_spare)
                await self._scale(deployment, replicaset, have - take)
                healthy_spare -= take

    async def _clean_up(self, deployment: Object, new: Object) -> None:
        """Delete the oldest empty ReplicaSets beyond ``revisionHistoryLimit``, once the rollout is complete."""
        if not complete(deployment):
            return
        limit = deployment["spec"].get("revisionHistoryLimit")
        idle = [
            each
            for each in self._owned(deployment)
            if meta(each)["uid"] != meta(new)["uid"]
            and not each["spec"]["replicas"]
            and not (each.get("status") or {}).get("replicas")
        ]
        idle.sort(key=revision_of)
        for replicaset in idle[: max(0, len(idle) - (10 if limit is None else limit))]:
            await self.kube.delete(
                "ReplicaSet", meta(replicaset)["name"], meta(replicaset)["namespace"], uid=meta(replicaset)["uid"]
            )

    # --- status ------------------------------------------------------------------------------------------------

    async def _set_progress(self, deployment: Object, status: str, reason: str, message: str) -> None:
        fresh = self.deployments.get(meta(deployment)["name"], meta(deployment)["namespace"]) or deployment
        old_status = fresh.get("status") or {}
        conditions = progress(old_status.get("conditions"), status, reason, message)
        await self.write_status(fresh, old_status | {"conditions": conditions})

    async def _update_status(self, deployment: Object) -> None:
        fresh = self.deployments.get(meta(deployment)["name"], meta(deployment)["namespace"])
        if fresh is None or is_deleting(fresh):
            return
        new, old = self._newest(fresh)
        replicasets = [each for each in [new, *old] if each is not None]
        total = {
            field: sum((each.get("status") or {}).get(field, 0) for each in replicasets)
            for field in ("replicas", "readyReplicas", "availableReplicas")
        }
        wanted = fresh["spec"]["replicas"]
        counts = {
            "replicas": total["replicas"],
            "updatedReplicas": ((new or {}).get("status") or {}).get("replicas", 0),
            "readyReplicas": total["readyReplicas"],
            "availableReplicas": total["availableReplicas"],
            "unavailableReplicas": max(0, sum(e["spec"]["replicas"] for e in replicasets) - total["availableReplicas"]),
        }
        status: Object = {"observedGeneration": meta(fresh)["generation"]}
        status |= {name: count for name, count in counts.items() if count}
        old_status = fresh.get("status") or {}
        if "collisionCount" in old_status:
            status["collisionCount"] = old_status["collisionCount"]
        status["conditions"] = self._conditions(fresh, status, new, replicasets, wanted)
        await self.write_status(fresh, status)

    def _conditions(
        self, deployment: Object, status: Object, new: Object | None, replicasets: list[Object], wanted: int
    ) -> list[Object]:
        old_status = deployment.get("status") or {}
        conditions = [each for each in old_status.get("conditions") or [] if each["type"] != "ReplicaFailure"]
        enough = status.get("availableReplicas", 0) >= wanted - fences(deployment)[1]
        conditions = with_updated(
            conditions,
            {
                "type": "Available",
                "status": "True" if enough else "False",
                "reason": "MinimumReplicasAvailable" if enough else "MinimumReplicasUnavailable",
                "message": f"Deployment {'has' if enough else 'does not have'} minimum availability.",
            },
        )
        for replicaset in replicasets:
            failure = condition(replicaset, "ReplicaFailure")
            if failure is not None:
                failure.pop("lastTransitionTime", None)
                conditions = with_updated(conditions, failure)
                break
        return self._progress_condition(deployment, status, new, conditions)

    def _progress_condition(
        self, deployment: Object, status: Object, new: Object | None, conditions: list[Object]
    ) -> list[Object]:
        deadline = deployment["spec"].get("progressDeadlineSeconds")
        if deadline is None or deployment["spec"].get("paused"):
            return conditions
        old_status = deployment.get("status") or {}
        present = condition(deployment, "Progressing")
        label = f'ReplicaSet "{meta(new)["name"]}"' if new else f'Deployment "{meta(deployment)["name"]}"'
        if present is not None and present["reason"] == "NewReplicaSetAvailable" and settled(deployment, status):
            return conditions
        if settled(deployment, status):
            return progress(conditions, "True", "NewReplicaSetAvailable", f"{label} has successfully progressed.")
        fields = ("updatedReplicas", "readyReplicas", "availableReplicas")
        grew = any(status.get(field, 0) > old_status.get(field, 0) for field in fields)
        old_before = old_status.get("replicas", 0) - old_status.get("updatedReplicas", 0)
        shrank = status.get("replicas", 0) - status.get("updatedReplicas", 0) < old_before
        if present is None or grew or shrank:
            return progress(conditions, "True", "ReplicaSetUpdated", f"{label} is progressing.", refresh=True)
        if present["reason"] == "NewReplicaSetAvailable" or present["status"] == "False":
            # A finished rollout that lost pods is not a new rollout; a timed-out one stays so until it moves.
            return conditions
        left = self.clock.real(deadline) - age(present.get("lastUpdateTime"))
        if left <= 0:
            return progress(conditions, "False", "ProgressDeadlineExceeded", f"{label} has timed out progressing.")
        self.queue.add_after((meta(deployment)["namespace"], meta(deployment)["name"]), left + 0.1)
        return conditions
