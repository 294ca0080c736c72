"""Creating and deleting the pods of a controller, with the events that the real controllers write.

Source: kubernetes/kubernetes ``pkg/controller/controller_utils.go``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from sandbox.controllers.base import Controller
from sandbox.controllers.objects import Object, controller_of, controller_uids, meta
from sandbox.kube.informers import Change, Informer
from sandbox.kube.resources import ApiError


class PodOwner(Controller):
    """A controller whose objects own pods.

    :cvar kind: the kind that owns them.
    """

    kind: str
    pods: Informer
    owners: Informer

    def wire(self) -> None:
        self.owners = self.watch_keys(self.kind)
        self.pods = self.watch("Pod", self._pod_changed)
        self.pods.add_index("owner", controller_uids)

    def _pod_changed(self, _change: Change, new: Object, _old: Object | None) -> None:
        owner = controller_of(new)
        if owner is not None and owner["kind"] == self.kind:
            self.queue.add((meta(new)["namespace"], owner["name"]))

    def pods_of(self, owner: Object) -> list[Object]:
        return self.pods.by_index("owner", meta(owner)["uid"])

    async def create_pod(self, owner: Object, pod: Object) -> Object:
        """Create one pod.

        :raises ApiError: after the event FailedCreate, with the server's message.
        """
        try:
            created = await self.kube.create(pod)
        except ApiError as error:
            if not error.has_cause("NamespaceTerminating") and not error.already_exists:
                self.event(owner, "FailedCreate", f"Error creating: {error.message}", "Warning")
            raise
        self.event(owner, "SuccessfulCreate", f"Created pod: {meta(created)['name']}")
        return created

    async def create_pods(self, owner: Object, pods: list[Object]) -> ApiError | None:
        """Create pods one, then two, then four at a time, stopping at the first failure, which is returned.

        A template that the server refuses is thus tried once, not for every replica. That the namespace is being
        deleted is no failure: there is nothing to try again.
        """
        created: list[Object] = []
        failure: ApiError | None = None
        done, batch = 0, 1
        while done < len(pods) and failure is None:
            part = pods[done : done + batch]
            answers = await asyncio.gather(*(self.create_pod(owner, pod) for pod in part), return_exceptions=True)
            for answer in answers:
                if isinstance(answer, ApiError):
                    failure = answer
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    created.append(answer)
            done, batch = done + len(part), batch * 2
        if created:
            await self.pods.caught_up(max(created, key=lambda pod: int(meta(pod)["resourceVersion"])))
        return None if failure is not None and failure.has_cause("NamespaceTerminating") else failure

    async def delete_pods(self, owner: Object, pods: Iterable[Object]) -> None:
        """Delete pods and wait until the cache shows it."""
        gone: list[Object] = []
        for pod in pods:
            if await self.kube.delete("Pod", meta(pod)["name"], meta(pod)["namespace"], uid=meta(pod)["uid"]):
                self.event(owner, "SuccessfulDelete", f"Deleted pod: {meta(pod)['name']}")
            gone.append(pod)

        def all_seen(informer: Informer) -> bool:
            for pod in gone:
                seen = informer.get(meta(pod)["name"], meta(pod)["namespace"])
                if seen is not None and meta(seen)["uid"] == meta(pod)["uid"] and "deletionTimestamp" not in meta(seen):
                    return False
            return True

        try:
            await self.pods.wait_until(all_seen, 2.0)
        except TimeoutError:
            return  # the next reconcile sees them

    def live_owner(self, key: tuple[str, str]) -> Object | None:
        """The owner, unless it is deleted or being deleted."""
        owner: dict[str, Any] | None = self.owners.get(key[1], key[0])
        return None if owner is None or "deletionTimestamp" in meta(owner) else owner
