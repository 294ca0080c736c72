"""Discovery documents: /version, /api, /apis and the resource lists, in the plain (unaggregated) form."""

from __future__ import annotations

import platform

from sandbox.apiserver.jsontools import Obj
from sandbox.apiserver.resources import Registry, Resource


def version(kubernetes: str) -> Obj:
    """``/version``; ``kubernetes`` is "1.35"."""
    major, minor = kubernetes.split(".")[:2]
    return {
        "major": major,
        "minor": minor,
        "emulationMajor": major,
        "emulationMinor": minor,
        "minCompatibilityMajor": major,
        "minCompatibilityMinor": str(int(minor) - 1),
        "gitVersion": f"v{major}.{minor}.0-sandbox",
        "gitCommit": "0000000000000000000000000000000000000000",
        "gitTreeState": "clean",
        "buildDate": "2026-01-01T00:00:00Z",
        "goVersion": "go1.25.0",
        "compiler": "gc",
        "platform": f"linux/{'arm64' if platform.machine() == 'aarch64' else 'amd64'}",
    }


def api_versions(address: str) -> Obj:
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def group(name: str, versions: list[str]) -> Obj:
    listed = [{"groupVersion": f"{name}/{item}", "version": item} for item in versions]
    return {"name": name, "versions": listed, "preferredVersion": listed[0]}


def groups(registry: Registry) -> Obj:
    found = [group(name, versions) for name, versions in registry.groups().items() if name]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": found}


def single_group(registry: Registry, name: str) -> Obj | None:
    versions = registry.groups().get(name)
    if not versions or not name:
        return None
    return {"kind": "APIGroup", "apiVersion": "v1", **group(name, versions)}


def resources(registry: Registry, group_name: str, version_name: str) -> Obj | None:
    """The resource list of one group and version; ``None`` if it is not served."""
    served = registry.version(group_name, version_name)
    if not served:
        return None
    listed: list[Obj] = []
    for resource in sorted(served, key=lambda item: item.plural):
        listed.append(_resource(resource))
        if resource.status:
            listed.append(_subresource(resource, "status", (resource.kind, "", ""), ["get", "patch", "update"]))
        for name, target in sorted(resource.subresources.items()):
            verbs = {"scale": ["get", "patch", "update"], "log": ["get"], "finalize": ["update"]}.get(name, ["create"])
            listed.append(_subresource(resource, name, target, verbs))
    group_version = f"{group_name}/{version_name}" if group_name else version_name
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": listed}


def _resource(resource: Resource) -> Obj:
    entry: Obj = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": sorted(resource.verbs),
    }
    if resource.short_names:
        entry["shortNames"] = list(resource.short_names)
    if resource.categories:
        entry["categories"] = list(resource.categories)
    return entry


def _subresource(resource: Resource, name: str, target: tuple[str, str, str], verbs: list[str]) -> Obj:
    kind, group_name, version_name = target
    entry: Obj = {
        "name": f"{resource.plural}/{name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": kind,
        "verbs": verbs,
    }
    if (group_name, version_name) not in (("", ""), (resource.group, resource.version)):
        entry["group"], entry["version"] = group_name, version_name
    return entry
