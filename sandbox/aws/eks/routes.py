"""Routes of the EKS API that the shim answers from :class:`sandbox.aws.eks.clusters.Eks`.

A route is (method, path segments with ``{}`` for an argument, handler). A handler gets the EKS state, the cluster, the
arguments after the cluster's name, and the JSON body (of a GET its query); it returns the JSON reply.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

from sandbox.aws.eks.clusters import ClusterState, Eks, JsonObject

Handler = Callable[[Eks, ClusterState, list[str], JsonObject], JsonObject]


def _create_entry(eks: Eks, cluster: ClusterState, _args: list[str], body: JsonObject) -> JsonObject:
    return {"accessEntry": eks.describe_access_entry(cluster, eks.create_access_entry(cluster, body))}


def _list_entries(eks: Eks, cluster: ClusterState, _args: list[str], _body: JsonObject) -> JsonObject:
    return {"accessEntries": eks.list_access_entries(cluster)}


def _describe_entry(eks: Eks, cluster: ClusterState, args: list[str], _body: JsonObject) -> JsonObject:
    return {"accessEntry": eks.describe_access_entry(cluster, eks.access_entry(cluster, args[0]))}


def _update_entry(eks: Eks, cluster: ClusterState, args: list[str], body: JsonObject) -> JsonObject:
    entry = eks.access_entry(cluster, args[0])
    entry.groups = [str(group) for group in body.get("kubernetesGroups", entry.groups)]
    entry.username = str(body.get("username", entry.username))
    return {"accessEntry": eks.describe_access_entry(cluster, entry)}


def _delete_entry(eks: Eks, cluster: ClusterState, args: list[str], _body: JsonObject) -> JsonObject:
    eks.access_entry(cluster, args[0])
    del cluster.access_entries[args[0]]
    return {}


def _list_policies(eks: Eks, cluster: ClusterState, args: list[str], _body: JsonObject) -> JsonObject:
    entry = eks.access_entry(cluster, args[0])
    return {
        "clusterName": cluster.name,
        "principalArn": entry.principal_arn,
        "associatedAccessPolicies": list(entry.policies.values()),
    }


def _associate_policy(eks: Eks, cluster: ClusterState, args: list[str], body: JsonObject) -> JsonObject:
    entry = eks.access_entry(cluster, args[0])
    policy = eks.associate_policy(entry, body)
    return {"clusterName": cluster.name, "principalArn": entry.principal_arn, "associatedAccessPolicy": policy}


def _disassociate_policy(eks: Eks, cluster: ClusterState, args: list[str], _body: JsonObject) -> JsonObject:
    eks.access_entry(cluster, args[0]).policies.pop(args[1], None)
    return {}


def _create_identity(eks: Eks, cluster: ClusterState, _args: list[str], body: JsonObject) -> JsonObject:
    return {"association": eks.create_pod_identity(cluster, body)}


def _list_identities(eks: Eks, cluster: ClusterState, _args: list[str], query: JsonObject) -> JsonObject:
    keys = ("clusterName", "namespace", "serviceAccount", "associationArn", "associationId")
    found = eks.list_pod_identities(cluster, query.get("namespace"), query.get("serviceAccount"))
    return {"associations": [{key: item[key] for key in keys} for item in found]}


def _describe_identity(eks: Eks, cluster: ClusterState, args: list[str], _body: JsonObject) -> JsonObject:
    return {"association": eks.pod_identity(cluster, args[0])}


def _update_identity(eks: Eks, cluster: ClusterState, args: list[str], body: JsonObject) -> JsonObject:
    association = eks.pod_identity(cluster, args[0])
    association["roleArn"] = body.get("roleArn", association["roleArn"])
    return {"association": association}


def _delete_identity(eks: Eks, cluster: ClusterState, args: list[str], _body: JsonObject) -> JsonObject:
    association = eks.pod_identity(cluster, args[0])
    del cluster.pod_identities[args[0]]
    return {"association": association}


def _create_addon(eks: Eks, cluster: ClusterState, _args: list[str], body: JsonObject) -> JsonObject:
    return {"addon": eks.create_addon(cluster, body)}


def _list_addons(_eks: Eks, cluster: ClusterState, _args: list[str], _body: JsonObject) -> JsonObject:
    return {"addons": sorted(cluster.addons)}


def _describe_addon(eks: Eks, cluster: ClusterState, args: list[str], _body: JsonObject) -> JsonObject:
    return {"addon": eks.addon(cluster, args[0])}


def _delete_addon(eks: Eks, cluster: ClusterState, args: list[str], _body: JsonObject) -> JsonObject:
    addon = eks.addon(cluster, args[0])
    del cluster.addons[args[0]]
    return {"addon": {**addon, "status": "DELETING"}}


_ROUTES: list[tuple[str, str, Handler]] = [
    ("POST", "access-entries", _create_entry),
    ("GET", "access-entries", _list_entries),
    ("GET", "access-entries/{}", _describe_entry),
    ("POST", "access-entries/{}", _update_entry),
    ("DELETE", "access-entries/{}", _delete_entry),
    ("GET", "access-entries/{}/access-policies", _list_policies),
    ("POST", "access-entries/{}/access-policies", _associate_policy),
    ("DELETE", "access-entries/{}/access-policies/{}", _disassociate_policy),
    ("POST", "pod-identity-associations", _create_identity),
    ("GET", "pod-identity-associations", _list_identities),
    ("GET", "pod-identity-associations/{}", _describe_identity),
    ("POST", "pod-identity-associations/{}", _update_identity),
    ("DELETE", "pod-identity-associations/{}", _delete_identity),
    ("POST", "addons", _create_addon),
    ("GET", "addons", _list_addons),
    ("GET", "addons/{}", _describe_addon),
    ("DELETE", "addons/{}", _delete_addon),
]


def match(method: str, raw_path: str) -> tuple[str, list[str], Handler] | None:
    """
    The route of a request.

    :param raw_path: as received, so that an ARN's encoded slashes stay inside their segment.
    :return: cluster name, further arguments, handler; ``None`` if this is moto's to answer.
    """
    segments = [unquote(part) for part in raw_path.strip("/").split("/")]
    if len(segments) < 3 or segments[0] != "clusters":
        return None
    name, rest = segments[1], segments[2:]
    for route_method, pattern, handler in _ROUTES:
        wanted: list[Any] = pattern.split("/")
        if route_method != method or len(wanted) != len(rest):
            continue
        if all(want in ("{}", have) for want, have in zip(wanted, rest, strict=True)):
            arguments = [have for want, have in zip(wanted, rest, strict=True) if want == "{}"]
            return name, arguments, handler
    return None
