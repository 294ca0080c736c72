"""How the cluster differs from a release's manifest: changed, deleted and added fields, and who owns them now. Pure.

The manifest is applied as a dry run in Helm's name; where the result differs from the live object, a field of the
manifest was changed. Additions do not show there: they are fields that another manager owns and the manifest lacks
(``metadata.managedFields``, sigs.k8s.io/structured-merge-diff fieldpath). Values are never shown: they may be secret.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from gpu_fleet.core.releases.storage import ANNOTATION_RELEASE, ANNOTATION_RELEASE_NAMESPACE, LABEL_MANAGED_BY

#: Helm's field manager (helm pkg/kube/client.go ``ManagedFieldsManager``), of both majors.
FIELD_MANAGER = "helm"
#: Managers whose additions are the cluster's own work, not a person's or another program's change.
_CLUSTERS_OWN = ("kube-controller-manager", "kube-scheduler", "kubelet", "kube-apiserver", "cloud-controller-manager")
#: Annotations that controllers write (kubernetes pkg/controller/deployment/util, pkg/controller/daemon; karpenter
#: pkg/apis/v1 ``nodepool-hash`` and the like).
_CONTROLLERS_ANNOTATIONS = (
    "deployment.kubernetes.io/",
    "deprecated.daemonset.template.generation",
    "karpenter.sh/",
    "karpenter.k8s.aws/",
)
#: Set by the server; no manifest has them.
_SERVERS = frozenset(
    {"managedFields", "resourceVersion", "generation", "uid", "creationTimestamp", "selfLink", "deletionTimestamp",
     "deletionGracePeriodSeconds"}
)  # fmt: skip

#: Where a value is in an object: names of fields and indices of list items.
Path = tuple[str | int, ...]
#: Where an owned value is: of each step the field or index in the live object, and the key of ``fieldsV1``.
Place = tuple[tuple[str | int, str], ...]
#: Parts of list keys that manifests may leave out, with what the server fills in (kubernetes
#: staging/src/k8s.io/api/core/v1/types.go: ``+default="TCP"`` of container and service ports).
_KEY_DEFAULTS = {"protocol": "TCP"}
#: One step of a path: ``("f", field)``, ``("k", keys of a list item)`` or ``("v", value of a set item)``.
Step = tuple[str, Any]


class Change(StrEnum):
    """What happened to an object or a field."""

    DELETED = "deleted"
    CHANGED = "changed"
    TAKEN = "taken"  # changed, and owned by another field manager now
    ADDED = "added"


@dataclass(frozen=True)
class Difference:
    """One difference.

    :ivar target: the object, as ``Kind namespace/name``.
    :ivar field: dotted path; empty for a deleted object.
    :ivar manager: the field manager that did it, if the object records it.
    :ivar path: the field as steps; of an added field in the live object.
    """

    change: Change
    target: str
    field: str = ""
    manager: str = ""
    path: Path = dataclasses.field(default=(), compare=False, repr=False)

    def __str__(self) -> str:
        by = f" by {self.manager}" if self.manager else ""
        return f"{self.target}{': ' + self.field if self.field else ''} {self.change.value}{by}"


def completed(document: Mapping[str, Any], release: str, namespace: str, home: str | None) -> dict[str, Any]:
    """The document as Helm applies it: with its namespace and Helm's own label and annotations.

    :param namespace: of the release.
    :param home: namespace of the object, ``None`` for cluster-scoped kinds.
    """
    metadata = {**(document.get("metadata") or {})}
    metadata.pop("namespace", None)
    if home is not None:
        metadata["namespace"] = home
    metadata["labels"] = {**(metadata.get("labels") or {}), LABEL_MANAGED_BY: "Helm"}
    metadata["annotations"] = {
        **(metadata.get("annotations") or {}),
        ANNOTATION_RELEASE: release,
        ANNOTATION_RELEASE_NAMESPACE: namespace,
    }
    return {**document, "metadata": metadata}


def differences(
    target: str,
    live: Mapping[str, Any],
    applied: Mapping[str, Any],
    wanted: Mapping[str, Any],
    *,
    manager: str = FIELD_MANAGER,
) -> list[Difference]:
    """Everything in which a live object differs from what applying the manifest would make of it.

    :param applied: the answer of the dry run.
    :param wanted: the completed document of the manifest.
    :param manager: in whose name it is applied.
    """
    found = []
    for path in differing(_comparable(live), _comparable(applied)):
        owners = [name for name in _owners(live, path) if name != manager]
        change = Change.TAKEN if owners else Change.CHANGED
        found.append(Difference(change, target, dotted(path), ", ".join(owners), path))
    known = {item.path for item in found}
    mine = [fields for name, fields, subresource in _entries(live) if name == manager and not subresource]
    for place, other in _foreign_fields(live, manager):
        new = _added(wanted, mine, place)
        if new is None or any(new[: len(item)] == item for item in known):
            continue
        known.add(new)
        found.append(Difference(Change.ADDED, target, dotted(new), other, new))
    return found


# --- values ----------------------------------------------------------------------------------------------------------


def _comparable(obj: Mapping[str, Any]) -> dict[str, Any]:
    copy = {key: value for key, value in obj.items() if key not in {"status", "stringData"}}
    metadata = obj.get("metadata") or {}
    copy["metadata"] = {key: value for key, value in metadata.items() if key not in _SERVERS}
    return copy


def differing(live: Any, applied: Any, path: Path = ()) -> Iterator[Path]:
    """Paths of the smallest parts that differ."""
    if live == applied:
        return
    if isinstance(live, Mapping) and isinstance(applied, Mapping):
        for key in sorted({*live, *applied}):
            if key not in live or key not in applied:
                yield (*path, key)
            else:
                yield from differing(live[key], applied[key], (*path, key))
    elif isinstance(live, list) and isinstance(applied, list) and len(live) == len(applied):
        for index, (one, other) in enumerate(zip(live, applied, strict=True)):
            yield from differing(one, other, (*path, index))
    else:
        yield path


def dotted(path: Iterable[str | int]) -> str:
    """The path in the usual notation, for example ``spec.containers[0].image``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part}" if text else part
    return text


# --- owners ----------------------------------------------------------------------------------------------------------


def _entries(live: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any], bool]]:
    """Manager, its fields, and whether it wrote them through a subresource."""
    for entry in (live.get("metadata") or {}).get("managedFields") or []:
        yield str(entry.get("manager") or "?"), entry.get("fieldsV1") or {}, bool(entry.get("subresource"))


def _owners(live: Mapping[str, Any], path: Path) -> list[str]:
    """The managers that own a field (or a whole of which it is a part)."""
    return sorted({manager for manager, fields, _ in _entries(live) if _owns(fields, live, path)})


def _owns(fields: Mapping[str, Any], value: Any, path: Path) -> bool:
    if not path:
        return True
    step, rest = path[0], path[1:]
    if isinstance(step, str):
        inner = fields.get(f"f:{step}")
        if inner is None:
            return False
        below = value.get(step) if isinstance(value, Mapping) else None
        return True if not inner else _owns(inner, below, rest)
    item = value[step] if isinstance(value, list) and step < len(value) else None
    for key, inner in fields.items():
        kind, content = _step(key)
        if kind == "k" and isinstance(item, Mapping) and all(item.get(k) == v for k, v in content.items()):
            return True if not inner else _owns(inner, item, rest)
        if kind == "v" and content == item:
            return True
    return False


def _step(key: str) -> Step:
    kind, _, text = key.partition(":")
    if kind in {"k", "v"}:
        return kind, json.loads(text)
    return kind, text


def _foreign_fields(live: Mapping[str, Any], mine: str) -> Iterator[tuple[Place, str]]:
    """Leaf fields owned by people and programs other than us and the cluster itself, with the manager."""
    for manager, fields, subresource in _entries(live):
        if subresource or manager == mine or manager.startswith(_CLUSTERS_OWN):
            continue
        for place in _leaves(fields, live):
            if not _is_the_clusters(tuple(step for step, _ in place)):
                yield place, manager


def _is_the_clusters(path: Path) -> bool:
    if path[0] == "status" or path[:2] == ("metadata", "finalizers"):
        return True
    # The webhook's server, or cert-manager's cainjector, writes its CA into the webhook's configuration.
    if path[-1] == "caBundle":
        return True
    return path[:2] == ("metadata", "annotations") and str(path[-1]).startswith(_CONTROLLERS_ANNOTATIONS)


def _leaves(fields: Mapping[str, Any], value: Any) -> Iterator[Place]:
    """Places of a field set's leaves in the live object; what is no longer there is left out."""
    for key, inner in fields.items():
        if key == ".":
            continue
        kind, content = _step(key)
        if kind == "f":
            if not isinstance(value, Mapping) or content not in value:
                continue
            step: str | int = content
            below = value[content]
        else:
            index = _index(value, kind, content)
            if index is None:
                continue
            step, below = index, value[index]
        deeper: list[Place] = [((step, key), *place) for place in _leaves(inner, below)] if inner else []
        yield from deeper or [((step, key),)]


def _index(value: Any, kind: str, content: Any) -> int | None:
    if not isinstance(value, list):
        return None
    for index, item in enumerate(value):
        if kind == "v" and item == content:
            return index
        if kind == "k" and isinstance(item, Mapping) and all(item.get(k) == v for k, v in content.items()):
            return index
    return None


def _added(wanted: Any, mine: Sequence[Mapping[str, Any]], place: Place) -> Path | None:
    """What was added at a place, as a path in the live object; ``None`` if the manifest has it.

    List items are found by their key, as in the place: indices differ where an item was added before them. Of an item
    that the manifest lacks the item itself is what was added, of a field that field.

    :param mine: the field sets of the manifest's manager, at this level.
    """
    path: Path = ()
    for index, (step, key) in enumerate(place):
        path = (*path, step)
        mine = [inner for fields in mine if isinstance(inner := fields.get(key), Mapping)]
        kind, content = _step(key)
        if kind != "f":
            if not isinstance(wanted, list):
                return path
            found = _wanted_item(wanted, kind, content, owned=bool(mine))
            if found is None:
                return path
            wanted = found[0]
            continue
        if not isinstance(wanted, Mapping):
            return tuple(each for each, _ in place)
        if content == "data" and content not in wanted and "stringData" in wanted:
            return None
        if content not in wanted:
            return _until_item(path, place[index + 1 :])
        wanted = wanted[content]
    return None


def _until_item(path: Path, rest: Place) -> Path:
    """The path of an added field, down to its first list item: everything inside that item was added with it."""
    for step, key in rest:
        path = (*path, step)
        if _step(key)[0] != "f":
            break
    return path


def _wanted_item(wanted: Sequence[Any], kind: str, content: Any, *, owned: bool) -> tuple[Any] | None:
    """The manifest's item with that key or value, in a tuple, for it may be ``None`` itself.

    :param owned: the manifest's manager owns the item: then it is there, even if the manifest leaves out a part of the
        key that has a default which is not known here.
    """
    if kind == "v":
        return (content,) if content in wanted else None
    items = [item for item in wanted if isinstance(item, Mapping)]
    for item in items:
        if all(item.get(field, _KEY_DEFAULTS.get(field)) == value for field, value in content.items()):
            return (item,)
    if not owned:
        return None
    alike = (item for item in items if all(item.get(field, value) == value for field, value in content.items()))
    found = next(alike, None)
    return None if found is None else (found,)
