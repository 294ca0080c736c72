"""What a release's manifest contains: identities, workloads, what a failed revision may have leaked. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from gpu_fleet.core.releases.storage import ANNOTATION_RELEASE, ANNOTATION_RELEASE_NAMESPACE

#: libyaml where it was built: large CRD manifests take seconds without it.
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

#: helm pkg/kube/resource_policy.go: objects so annotated outlive the release.
ANNOTATION_POLICY = "helm.sh/resource-policy"
ANNOTATION_HOOK = "helm.sh/hook"
WORKLOAD_KINDS = frozenset({"DaemonSet", "Deployment", "StatefulSet", "Job"})
#: Never deleted as a leftover: that would also delete all objects of a CRD's kind, a claim's data, or all that is in a
#: namespace.
PRECIOUS_KINDS = frozenset({"CustomResourceDefinition", "PersistentVolumeClaim", "PersistentVolume", "Namespace"})
REDACTED = "(hidden)"


@dataclass(frozen=True, order=True)
class ObjectId:
    """One object of a manifest. Cluster-scoped objects may carry a namespace here: only the server knows the scope."""

    api_version: str
    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        """``apiVersion/Kind/namespace/name``; an API version may itself hold one slash, names never do."""
        return f"{self.api_version}/{self.kind}/{self.namespace}/{self.name}"

    @classmethod
    def parse(cls, text: str) -> ObjectId:
        """The inverse of ``str``."""
        api_version, kind, namespace, name = text.rsplit("/", 3)
        return cls(api_version, kind, namespace, name)


def documents(manifest: str) -> Iterator[dict[str, Any]]:
    """The objects of a rendered manifest; ``List`` kinds are taken apart."""
    for document in yaml.load_all(manifest or "", Loader=_Loader):
        if not isinstance(document, dict):
            continue
        items = document.get("items")
        if str(document.get("kind", "")).endswith("List") and isinstance(items, list):
            yield from (item for item in items if isinstance(item, dict))
        else:
            yield document


def _identity(document: Mapping[str, Any], namespace: str) -> ObjectId | None:
    metadata = document.get("metadata") or {}
    if not document.get("kind") or not metadata.get("name"):
        return None
    home = str(metadata.get("namespace") or namespace)
    return ObjectId(str(document.get("apiVersion", "")), str(document["kind"]), home, str(metadata["name"]))


def object_ids(manifest: str, namespace: str) -> tuple[ObjectId, ...]:
    """The identities of a manifest's objects, sorted.

    :param namespace: of the release, for objects that name none.
    """
    found = {_identity(document, namespace) for document in documents(manifest)}
    return tuple(sorted(item for item in found if item is not None))


def workloads(manifest: str, namespace: str) -> tuple[str, ...]:
    """``Kind/namespace/name`` of the workloads, for the gate's arguments."""
    return tuple(
        f"{item.kind}/{item.namespace}/{item.name}"
        for item in object_ids(manifest, namespace)
        if item.kind in WORKLOAD_KINDS
    )


def passes_away(document: Mapping[str, Any]) -> bool:
    """Whether the cluster itself deletes the object once it is done, so that its absence is neither drift nor a fault
    (kubernetes pkg/controller/ttlafterfinished)."""
    return document.get("kind") == "Job" and (document.get("spec") or {}).get("ttlSecondsAfterFinished") is not None


def passing(manifest: str, namespace: str) -> tuple[str, ...]:
    """Those of the :func:`workloads` that the cluster deletes once they are done."""
    found = {_identity(document, namespace) for document in documents(manifest) if passes_away(document)}
    return tuple(f"{item.kind}/{item.namespace}/{item.name}" for item in sorted(filter(None, found)))


def workload_of(pod: Mapping[str, Any]) -> str:
    """``Kind/name`` of what controls a pod, empty if nothing does; for a ReplicaSet of a Deployment the Deployment.

    The ReplicaSet itself need not exist any more: its name is the Deployment's with the hash of the template, which its
    pods carry as a label.
    """
    metadata = pod["metadata"]
    owner = next((item for item in metadata.get("ownerReferences") or [] if item.get("controller")), None)
    if owner is None:
        return ""
    kind, name = str(owner.get("kind")), str(owner.get("name"))
    template = (metadata.get("labels") or {}).get("pod-template-hash")
    if kind == "ReplicaSet" and template and name.endswith(f"-{template}"):
        return f"Deployment/{name.removesuffix(f'-{template}')}"
    return f"{kind}/{name}"


def crds(manifest: str) -> tuple[str, ...]:
    """Names of the CustomResourceDefinitions among a manifest's objects."""
    return tuple(item.name for item in object_ids(manifest, "") if item.kind == "CustomResourceDefinition")


def belongs_to(live: Mapping[str, Any], release: str, namespace: str) -> bool:
    """Whether a live object carries Helm's ownership annotations of that very release."""
    annotations = (live.get("metadata") or {}).get("annotations") or {}
    return annotations.get(ANNOTATION_RELEASE) == release and annotations.get(ANNOTATION_RELEASE_NAMESPACE) == namespace


def may_be_pruned(live: Mapping[str, Any], release: str, namespace: str) -> bool:
    """Whether a leftover may be deleted: it belongs to the release, is not precious, and is not marked to be kept."""
    annotations = (live.get("metadata") or {}).get("annotations") or {}
    return (
        belongs_to(live, release, namespace)
        and str(live.get("kind")) not in PRECIOUS_KINDS
        and annotations.get(ANNOTATION_POLICY) != "keep"
    )


def leaked(manifests: Iterable[str], current: str, namespace: str) -> tuple[ObjectId, ...]:
    """Objects of other revisions' manifests that the current one lacks; whether they exist must be looked up."""
    kept = {(item.kind, item.namespace, item.name) for item in object_ids(current, namespace)}
    found = {item for manifest in manifests for item in object_ids(manifest, namespace)}
    return tuple(sorted(item for item in found if (item.kind, item.namespace, item.name) not in kept))


def readable_manifest(manifest: str) -> str:
    """The manifest for display: contents of Secrets are hidden; CRD schemas, being pages long, are left out."""
    shown = []
    for document in documents(manifest):
        copy = dict(document)
        if copy.get("kind") == "Secret":
            for key in ("data", "stringData"):
                if isinstance(copy.get(key), dict):
                    copy[key] = dict.fromkeys(copy[key], REDACTED)
        elif copy.get("kind") == "CustomResourceDefinition":
            copy["spec"] = "(schema left out)"
        shown.append(yaml.safe_dump(copy, sort_keys=False, width=120))
    return "---\n".join(shown)


def without_kinds(manifest: str, kinds: frozenset[str]) -> tuple[str, tuple[str, ...]]:
    """The manifest without the objects of some kinds, and what was removed from it (``Kind/name``).

    On uninstall Helm deletes what the stored manifest lists, whatever the live annotations; leaving CRDs out of it is
    the only way to uninstall a chart whose templates are CRDs without deleting every object of those kinds.
    """
    kept, removed = [], []
    for document in documents(manifest):
        if document.get("kind") in kinds:
            removed.append(f"{document['kind']}/{(document.get('metadata') or {}).get('name')}")
        else:
            kept.append(document)
    if not removed:
        return manifest, ()
    return "".join(f"---\n{yaml.safe_dump(item, sort_keys=False)}" for item in kept), tuple(removed)


#: ``(apiVersion, kind)`` of objects.
TypeId = tuple[str, str]


def types_of(manifest: str) -> tuple[TypeId, ...]:
    """The types of a manifest's objects, sorted."""
    found = {(str(item.get("apiVersion", "")), str(item["kind"])) for item in documents(manifest) if item.get("kind")}
    return tuple(sorted(found))


def with_served_types(manifest: str, gone: Mapping[TypeId, str | None]) -> tuple[str, tuple[str, ...]]:
    """The manifest with types that the server has, and what was changed, in words.

    Helm builds every object of the stored manifest by discovery before it does anything, and before an uninstall only
    after it has written ``uninstalling`` (helm v4.2.4 pkg/action/upgrade.go, rollback.go, uninstall.go, all
    ``KubeClient.Build``; the same in 3.20): one type that the server no longer has stops it for good.

    :param gone: types that the server does not have -> the ``apiVersion`` under which it has the same kind, or ``None``
        if it has none: then its objects are gone as well, and are left out.
    """
    kept, changed = [], []
    for document in documents(manifest):
        key = (str(document.get("apiVersion", "")), str(document.get("kind", "")))
        if key not in gone:
            kept.append(document)
            continue
        name = f"{key[1]}/{(document.get('metadata') or {}).get('name')}"
        served = gone[key]
        if served is None:
            changed.append(f"{name} left out ({key[0]} has no such kind any more)")
        else:
            kept.append({**document, "apiVersion": served})
            changed.append(f"{name} moved from {key[0]} to {served}")
    if not changed:
        return manifest, ()
    return "".join(f"---\n{yaml.safe_dump(item, sort_keys=False)}" for item in kept), tuple(changed)
