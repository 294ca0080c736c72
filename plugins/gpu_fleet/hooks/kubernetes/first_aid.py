"""The one write of a trigger: first aid to a node that EC2 is going to take.

Triggers read, and nothing else. This is the exception, because a worker would come seconds too late, and it is kept
narrow: annotations of this package and ``unschedulable: true``, of one Node, in the version that was looked at. It can
neither remove anything nor make a node schedulable.
"""

from __future__ import annotations

from collections.abc import Mapping

from gpu_fleet.core.errors import Invalid
from gpu_fleet.core.interruptions.marks import FirstAid
from gpu_fleet.core.kubernetes.kinds import NODE
from gpu_fleet.core.kubernetes.names import DOMAIN, FIELD_MANAGER
from gpu_fleet.hooks.kubernetes.aio import AsyncKubeClient
from gpu_fleet.hooks.kubernetes.paths import Json, object_path


class NodeFirstAid:
    """Writes to Nodes over a trigger's client; whoever made the client closes it."""

    def __init__(self, client: AsyncKubeClient) -> None:
        self._client = client

    async def give(self, node: Json, aid: FirstAid) -> Json:
        """Annotate the node, and cordon it if the aid says so.

        EC2 gives the address of a terminated instance, and so the name of its node, to later instances. The
        resourceVersion is of no other object (kubernetes v1.36 staging/src/k8s.io/apiserver/pkg/registry/generic/
        registry/store.go, ``Update``: 409 if it is not the stored one), so what is written meets the node that was
        looked at, unchanged, or nothing.

        :param node: as the API server gave it.
        :returns: the node as it is now.
        :raises Conflict: the node is not that version any more: look again.
        :raises NotFound: it is gone.
        """
        body = patch_of(node, aid)
        name = str(node["metadata"]["name"])
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        found, _ = await self._client._call(
            object_path(NODE, None, name), query, f"first aid to Node {name}", merge=body
        )
        return found


def patch_of(node: Mapping[str, Json], aid: FirstAid) -> Json:
    """The merge patch.

    :raises Invalid: if it would write anything but annotations of this package, or has no version to rest on.
    """
    metadata = node["metadata"]
    version = metadata.get("resourceVersion")
    if not version or not all(name.startswith(f"{DOMAIN}/") for name in aid.annotations):
        raise Invalid(f"no first aid to Node {metadata.get('name')}: only annotations {DOMAIN}/…, of a known version")
    body: Json = {"metadata": {"resourceVersion": version, "annotations": dict(aid.annotations)}}
    if aid.cordon:
        body["spec"] = {"unschedulable": True}
    return body
