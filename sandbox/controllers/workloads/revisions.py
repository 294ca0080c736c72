"""ControllerRevisions: the history of a DaemonSet's or StatefulSet's pod template.

A rollback makes no new revision: the one whose template is wanted again becomes the newest by its number. The hash is
the label ``controller-revision-hash`` of a DaemonSet's revisions and ``controller.kubernetes.io/hash`` of a
StatefulSet's. Pods bear the former: of a DaemonSet with the hash, of a StatefulSet with the revision's whole name.

Source: kubernetes/kubernetes ``pkg/controller/history/controller_history.go``, ``pkg/controller/daemon/update.go``
(``constructHistory``), ``pkg/controller/statefulset/stateful_set_utils.go`` (``setPodRevision``).
"""

from __future__ import annotations

from typing import Any

from sandbox.controllers.objects import Object, controller_uids, hash_of, meta, owner_reference
from sandbox.kube.client import Kube
from sandbox.kube.informers import Informer
from sandbox.kube.resources import ApiError

HASH_LABEL = "controller-revision-hash"
HISTORY_LABEL = "controller.kubernetes.io/hash"


def revisions_of(owner: Object, informer: Informer) -> list[Object]:
    """The owner's revisions, oldest first."""
    informer.add_index("owner", controller_uids)
    return sorted(
        informer.by_index("owner", meta(owner)["uid"]), key=lambda each: (each["revision"], meta(each)["name"])
    )


async def current_revision(owner: Object, informer: Informer, kube: Kube) -> str:
    """The hash of the owner's present template; its ControllerRevision is created, or made the newest, when needed."""
    label = HASH_LABEL if owner["kind"] == "DaemonSet" else HISTORY_LABEL
    known = revisions_of(owner, informer)
    data = {"spec": {"template": owner["spec"]["template"] | {"$patch": "replace"}}}
    newest = known[-1]["revision"] if known else 0
    for revision in known:
        if revision["data"] == data:
            if revision["revision"] < newest:  # a rollback: the old template is the newest revision again
                answer = await kube.patch(
                    "ControllerRevision", meta(revision)["name"], {"revision": newest + 1}, meta(owner)["namespace"]
                )
                await informer.caught_up(answer)
            return str(meta(revision)["labels"][label])
    digest = hash_of(data)
    labels = dict((owner["spec"]["template"].get("metadata") or {}).get("labels") or {})
    body: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "ControllerRevision",
        "metadata": {
            "name": f"{meta(owner)['name']}-{digest}",
            "namespace": meta(owner)["namespace"],
            "labels": labels | {label: digest},
            "ownerReferences": [owner_reference(owner)],
        },
        "data": data,
        "revision": newest + 1,
    }
    try:
        await informer.caught_up(await kube.create(body))
    except ApiError as error:
        if not error.already_exists:
            raise
    return digest


async def trim(owner: Object, informer: Informer, kube: Kube, in_use: set[str]) -> None:
    """Delete the oldest revisions beyond ``revisionHistoryLimit`` that no pod runs.

    :param in_use: what live pods bear as their revision: hashes, or names.
    """
    known = revisions_of(owner, informer)
    idle = [
        each
        for each in known[:-1]
        if in_use.isdisjoint({meta(each)["name"], meta(each)["labels"].get(HASH_LABEL, meta(each)["name"])})
    ]
    limit = owner["spec"].get("revisionHistoryLimit")
    for revision in idle[: max(0, len(idle) - (10 if limit is None else limit))]:
        await kube.delete(
            "ControllerRevision", meta(revision)["name"], meta(owner)["namespace"], uid=meta(revision)["uid"]
        )
