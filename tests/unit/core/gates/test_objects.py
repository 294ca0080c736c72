from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.core.gates.objects import reference
from gpu_fleet.core.gates.registry import gate_named
from gpu_fleet.core.kubernetes.kinds import RUNTIME_CLASS
from gpu_fleet.core.queries import KubeQuery
from gpu_fleet.core.verdict import Phase, Verdict
from tests.unit.core.gates.test_node_pools import condition, thing

NVIDIA = {"apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "name": "nvidia"}
KEY = "RuntimeClass nvidia"


def found(uid: str = "u1", deleting: bool = False, finalizers: tuple[str, ...] = ()) -> dict[str, Any]:
    metadata: dict[str, Any] = {"name": "nvidia", "uid": uid, "finalizers": list(finalizers)}
    if deleting:
        metadata["deletionTimestamp"] = "2026-09-01T10:00:00Z"
    return {"kind": "RuntimeClass", "metadata": metadata}


def judge(gate: str, objects: list[dict[str, Any]], args: dict[str, Any] | None = None) -> Verdict:
    return gate_named(gate).judge({KEY: objects}, args or NVIDIA)


@pytest.mark.parametrize(
    ("objects", "phase", "reason"),
    [
        ([], Phase.PROGRESSING, "NotFound"),
        ([found()], Phase.READY, "ObjectExists"),
        ([found(deleting=True)], Phase.PROGRESSING, "Terminating"),
    ],
)
def test_existence(objects: list[dict[str, Any]], phase: Phase, reason: str) -> None:
    verdict = judge("object_exists", objects)
    assert (verdict.phase, verdict.reason) == (phase, reason)
    assert KEY in verdict.message


@pytest.mark.parametrize(
    ("objects", "uid", "phase", "reason"),
    [
        ([], None, Phase.READY, "ObjectGone"),
        ([found()], None, Phase.PROGRESSING, "NotDeleted"),
        ([found(deleting=True)], None, Phase.PROGRESSING, "Terminating"),
        ([found(deleting=True, finalizers=("x/y",))], None, Phase.PROGRESSING, "WaitingForFinalizers"),
        ([found("u1")], "u1", Phase.PROGRESSING, "NotDeleted"),
        ([found("u2")], "u1", Phase.READY, "ObjectGone"),
    ],
)
def test_absence(objects: list[dict[str, Any]], uid: str | None, phase: Phase, reason: str) -> None:
    verdict = judge("object_gone", objects, {"objects": [{**NVIDIA, "uid": uid}]})
    assert (verdict.phase, verdict.reason) == (phase, reason)


def test_one_of_several_is_enough_to_wait() -> None:
    other = {"apiVersion": "v1", "kind": "Namespace", "name": "x"}
    snapshot: dict[str, list[dict[str, Any]]] = {KEY: [found()], "Namespace x": []}
    args = {"objects": [NVIDIA, other]}
    assert gate_named("object_exists").judge(snapshot, args).message.startswith("Namespace x")
    assert gate_named("object_gone").judge(snapshot, args).message.startswith(KEY)


def test_no_object_named() -> None:
    assert gate_named("object_exists").judge({}, {"objects": []}).phase is Phase.PROGRESSING
    assert gate_named("object_gone").judge({}, {"objects": []}).ready


def test_queries_address_one_object_each() -> None:
    assert gate_named("object_exists").queries(NVIDIA) == (KubeQuery(KEY, RUNTIME_CLASS, None, "nvidia"),)


def test_a_kind_outside_the_table_needs_its_plural() -> None:
    widget = {"apiVersion": "x.io/v2", "kind": "Widget", "name": "w", "namespace": "n"}
    with pytest.raises(SpecError, match="plural"):
        reference(widget)
    assert reference({**widget, "plural": "widgets"}).kind.path("n", "w") == "/apis/x.io/v2/namespaces/n/widgets/w"


CRDS = {"crds": ["a.karpenter.sh", "b.karpenter.sh"], "now": 1.0, "started": 0.0}
ESTABLISHED = thing("CustomResourceDefinition", condition("Established", "True", generation=None))


@pytest.mark.parametrize(
    ("second", "phase", "reason"),
    [
        (ESTABLISHED, Phase.READY, "CrdEstablished"),
        (None, Phase.PROGRESSING, "CrdNotFound"),
        (thing("CustomResourceDefinition"), Phase.PROGRESSING, "NotEstablished"),
        (
            thing("CustomResourceDefinition", condition("Established", "False", "Installing")),
            Phase.PROGRESSING,
            "NotEstablished",
        ),
        (
            thing("CustomResourceDefinition", condition("NamesAccepted", "False", "PluralConflict", "in use")),
            Phase.FAILED,
            "NamesNotAccepted",
        ),
        (
            thing("CustomResourceDefinition", condition("Established", "True"), deleting=True),
            Phase.FAILED,
            "CrdTerminating",
        ),
    ],
)
def test_all_crds_must_be_served(second: dict[str, Any] | None, phase: Phase, reason: str) -> None:
    snapshot = {"a.karpenter.sh": [ESTABLISHED], "b.karpenter.sh": [second] if second else []}
    verdict = gate_named("crds_established").judge(snapshot, CRDS)
    assert (verdict.phase, verdict.reason) == (phase, reason)
