"""Gates on the mere presence or absence of objects.

Arguments: one object as ``{"apiVersion", "kind", "name", "namespace"}`` or several as ``{"objects": [...]}``. Kinds
outside the package's table (``core/kubernetes/kinds.py``) also need ``plural`` and, if cluster-scoped, ``namespaced:
false``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.gates.gate import Args, Gate, Snapshot
from gpu_fleet.core.kubernetes.conditions import outdated, sentence
from gpu_fleet.core.kubernetes.kinds import CRD, Kind, ObjectRef, kind_named
from gpu_fleet.core.kubernetes.objects import conditions, deleting, title_of
from gpu_fleet.core.queries import KubeQuery, Query
from gpu_fleet.core.verdict import Verdict, combine, failed, progressing, ready


def reference(value: Mapping[str, Any]) -> ObjectRef:
    """The reference in a gate's argument.

    :raises SpecError: for a kind that is neither in the table nor described by ``plural``.
    """
    api_version, kind = str(value["apiVersion"]), str(value["kind"])
    known = kind_named(api_version, kind)
    if known is None:
        if not value.get("plural"):
            raise SpecError(f"kind {kind} of {api_version} is not known", field="args.kind", remedy="add 'plural'")
        group, _, version = api_version.rpartition("/")
        known = Kind(group, version, kind, str(value["plural"]), bool(value.get("namespaced", True)))
    return ObjectRef(known, str(value["name"]), value.get("namespace") if known.namespaced else None)


def _wanted(args: Args) -> list[Mapping[str, Any]]:
    return list(args["objects"]) if "objects" in args else [args]


def _key(ref: ObjectRef) -> str:
    return str(ref)


def _queries(args: Args) -> tuple[Query, ...]:
    refs = {_key(ref): ref for ref in map(reference, _wanted(args))}
    return tuple(KubeQuery(key, ref.kind, namespace=ref.namespace, name=ref.name) for key, ref in sorted(refs.items()))


def _judge_exists(snapshot: Snapshot, args: Args) -> Verdict:
    verdicts = []
    for ref in map(reference, _wanted(args)):
        found = snapshot[_key(ref)]
        if not found:
            verdicts.append(progressing("NotFound", f"{ref} does not exist (yet)"))
        elif deleting(found[0]):
            verdicts.append(progressing("Terminating", f"{ref} is being deleted"))
        else:
            verdicts.append(ready("ObjectExists", f"{ref} exists"))
    return combine(verdicts, nothing=progressing("NoObjects", "no object was named"))


def _still_there(ref: ObjectRef, obj: Mapping[str, Any]) -> Verdict:
    metadata = obj.get("metadata") or {}
    if not deleting(obj):
        return progressing("NotDeleted", f"{ref} exists, and its deletion was not requested")
    waits = [*(metadata.get("finalizers") or []), *((obj.get("spec") or {}).get("finalizers") or [])]
    why = "; ".join(sentence(item) for kind, item in conditions(obj).items() if _keeps(kind, item))
    why = f": {why}" if why else ""
    if waits:
        return progressing("WaitingForFinalizers", f"{ref} is being deleted and waits for {', '.join(waits)}{why}")
    return progressing("Terminating", f"{ref} is being deleted{why}")


def _keeps(kind: str, item: Mapping[str, Any]) -> bool:
    """Whether a condition says what keeps an object that is being deleted: a namespace's content and finalizers that
    remain (kubernetes pkg/controller/namespace/deletion/status_condition_utils.go), a CRD's instances (apiextensions
    ``Terminating``), and what a NodeClaim waits for (karpenter ``Drained``, ``VolumesDetached``).
    """
    if kind in {"Drained", "VolumesDetached"}:
        return item.get("status") != "True"
    return item.get("status") == "True" and (kind.startswith("Namespace") or kind == "Terminating")


def _judge_gone(snapshot: Snapshot, args: Args) -> Verdict:
    verdicts = []
    for value in _wanted(args):
        ref = reference(value)
        # With a uid, a newer object of the same name does not count: the one that was deleted is gone.
        found = [
            obj
            for obj in snapshot[_key(ref)]
            if not value.get("uid") or (obj.get("metadata") or {}).get("uid") == value["uid"]
        ]
        verdicts.append(_still_there(ref, found[0]) if found else ready("ObjectGone", f"{ref} is gone"))
    if not verdicts:
        return ready("ObjectGone", "no object to wait for")
    return combine(verdicts, nothing=progressing("NoObjects", "no object was named"))


def _crd_queries(args: Args) -> tuple[Query, ...]:
    return tuple(KubeQuery(name, CRD, name=name) for name in args["crds"])


def _judge_crd(name: str, found: list[dict[str, Any]]) -> Verdict:
    if not found:
        return progressing("CrdNotFound", f"CustomResourceDefinition {name} does not exist (yet)")
    obj = found[0]
    if deleting(obj):
        return failed("CrdTerminating", f"{title_of(obj)} is being deleted; wait until it is gone, then run again")
    known = conditions(obj)
    refused = known.get("NamesAccepted", {})
    if refused.get("status") == "False":
        return failed("NamesNotAccepted", f"{title_of(obj)}: {sentence(refused)}; another CRD claims its names")
    established = known.get("Established")
    if established is None:
        return progressing("NotEstablished", f"{title_of(obj)}: the API server has not reported on it yet")
    if old := outdated(obj, established):
        return old
    if established.get("status") == "True":
        return ready("CrdEstablished", f"{name} is served")
    return progressing("NotEstablished", f"{title_of(obj)}: {sentence(established)}")


def _judge_crds(snapshot: Snapshot, args: Args) -> Verdict:
    nothing = progressing("NoCrds", "no CustomResourceDefinition was named")
    return combine([_judge_crd(name, snapshot[name]) for name in args["crds"]], nothing=nothing)


OBJECT_EXISTS = Gate("object_exists", _queries, _judge_exists)
OBJECT_GONE = Gate("object_gone", _queries, _judge_gone, waits_for_absence=True)
CRDS_ESTABLISHED = Gate("crds_established", _crd_queries, _judge_crds)
