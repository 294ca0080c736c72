"""Drift: what is compared, what is shown, and what each state of a release comes to."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.drift import (
    MAX_VALUE,
    Drift,
    Kind,
    Unread,
    managed_manifests,
    managed_releases,
    object_drifts,
    release_drifts,
    sentence,
    shown,
    surplus,
)
from gpu_fleet.core.releases.components import release_request
from gpu_fleet.core.releases.drift import differences
from gpu_fleet.core.releases.ledger import Entry, Ledger
from gpu_fleet.core.releases.state import Finding, Observation, Reason
from gpu_fleet.core.releases.storage import ReleaseStatus, StoredRevision
from tests.unit.core.specs import demo_spec

SPEC = demo_spec()


# --- what is compared ---
def names(**changes: Any) -> list[str]:
    return [f"{m.manifest['kind']} {m.manifest['metadata']['name']}" for m in managed_manifests(demo_spec(**changes))]


def test_everything_that_is_applied_is_compared() -> None:
    assert names() == [
        "RuntimeClass nvidia",
        "EC2NodeClass shared-a10g",
        "NodeOverlay gpu-fleet-shared-a10g",
        "NodePool shared-a10g",
        "EC2NodeClass whole-a100",
        "NodePool whole-a100",
        "Namespace gpu-fleet-system",
        "Namespace gpu-fleet-validation",
        "PriorityClass gpu-fleet-placeholder",
    ]
    assert managed_releases(SPEC) == ["karpenter-crd", "karpenter", "device-plugin"]


def test_what_is_managed_elsewhere_is_left_out() -> None:
    found = names(runtimeClass__manage=False, nodePools__1__manage=False, teardown__uninstallKarpenter=False)
    assert "RuntimeClass nvidia" not in found
    assert not any("whole-a100" in name for name in found)
    assert managed_releases(demo_spec(karpenter__manage=False)) == ["device-plugin"]
    assert managed_releases(demo_spec(devicePlugin__manage=False)) == ["karpenter-crd", "karpenter"]


def test_only_what_is_made_when_needed_may_be_absent() -> None:
    absent = {m.manifest["kind"] for m in managed_manifests(SPEC) if m.on_demand}
    assert absent == {"Namespace", "PriorityClass"}


def test_a_pool_that_left_the_spec_is_surplus_and_another_clusters_is_not() -> None:
    def pool(name: str, cluster: str) -> dict[str, Any]:
        return {"kind": "NodePool", "metadata": {"name": name, "labels": {"gpu-fleet.io/cluster": cluster}}}

    found = surplus(SPEC, [pool("shared-a10g", "demo"), pool("old", "demo"), pool("theirs", "other"), {}])
    assert found == [Drift(Kind.ADDED, "NodePool old", found="present")]


# --- values ---
WANTED: dict[str, Any] = {
    "kind": "NodePool",
    "metadata": {"name": "p"},
    "spec": {"limits": {"nodes": "4"}, "taints": ["t"], "weight": 1},
}
OURS = {"f:spec": {"f:limits": {"f:nodes": {}}, "f:taints": {}, "f:weight": {}}}


def of(live_spec: dict[str, Any], others: dict[str, Any] | None = None, kind: str = "NodePool") -> list[Drift]:
    managed = [{"manager": "gpu-fleet", "fieldsV1": OURS}]
    managed += [{"manager": name, "fieldsV1": fields} for name, fields in (others or {}).items()]
    live = {"kind": kind, "metadata": {"name": "p", "managedFields": managed}, "spec": live_spec}
    applied = {**WANTED, "kind": kind, "spec": {**live_spec, **WANTED["spec"]}}
    found = differences(f"{kind} p", live, applied, WANTED, manager="gpu-fleet")
    return object_drifts(found, live, applied)


@pytest.mark.parametrize(
    ("spec", "others", "expected"),
    [
        (WANTED["spec"], None, []),
        (
            {**WANTED["spec"], "limits": {"nodes": "9"}},
            None,
            [Drift(Kind.CHANGED, "NodePool p", "spec.limits.nodes", "4", "9")],
        ),
        (
            {**WANTED["spec"], "weight": 7},
            {"kubectl-edit": {"f:spec": {"f:weight": {}}}},
            [Drift(Kind.CHANGED, "NodePool p", "spec.weight", 1, 7, "kubectl-edit")],
        ),
        (
            {"limits": {"nodes": "4"}, "weight": 1},
            None,
            [Drift(Kind.DELETED, "NodePool p", "spec.taints", ["t"], None)],
        ),
        (
            {**WANTED["spec"], "extra": {"a": 1}},
            {"kubectl": {"f:spec": {"f:extra": {"f:a": {}}}}},
            [Drift(Kind.ADDED, "NodePool p", "spec.extra.a", None, 1, "kubectl")],
        ),
    ],
    ids=["as wanted", "changed", "changed and taken over", "field deleted", "field added"],
)
def test_each_difference_has_its_field_and_both_values(
    spec: dict[str, Any], others: dict[str, Any] | None, expected: list[Drift]
) -> None:
    assert of(spec, others) == expected


def test_a_field_that_the_spec_no_longer_has_is_added() -> None:
    live = {"kind": "NodePool", "metadata": {"name": "p"}, "spec": {"weight": 1, "old": True}}
    applied = {"kind": "NodePool", "metadata": {"name": "p"}, "spec": {"weight": 1}}
    found = object_drifts(differences("NodePool p", live, applied, applied), live, applied)
    assert found == [Drift(Kind.ADDED, "NodePool p", "spec.old", None, True)]


def test_a_pool_that_is_held_while_its_nodes_are_proven_does_not_differ_in_its_limits() -> None:
    """The drift check runs beside the proof; any other difference of the pool is one."""
    held = {"gpu-fleet.io/held-while-proving": "{}"}
    live = {
        "kind": "NodePool",
        "metadata": {"annotations": held},
        "spec": {"limits": {"nodes": "2"}, "weight": 10},
    }
    applied = {"kind": "NodePool", "metadata": {}, "spec": {"limits": {"nodes": "5"}, "weight": 20}}
    found = object_drifts(differences("NodePool p", live, applied, applied), live, applied)
    assert [drift.field for drift in found] == ["spec.weight"]
    free = {**live, "metadata": {}}
    found = object_drifts(differences("NodePool p", free, applied, applied), free, applied)
    assert {drift.field for drift in found} == {"spec.limits.nodes", "spec.weight"}


def test_labels_of_others_on_a_namespace_take_nothing_from_us() -> None:
    live = {
        "kind": "Namespace",
        "metadata": {
            "name": "n",
            "labels": {"gpu-fleet.io/cluster": "other", "pod-security.kubernetes.io/enforce": "baseline"},
            "managedFields": [
                {
                    "manager": "kyverno",
                    "fieldsV1": {"f:metadata": {"f:labels": {"f:pod-security.kubernetes.io/enforce": {}}}},
                }
            ],
        },
    }
    wanted = {"kind": "Namespace", "metadata": {"name": "n", "labels": {"gpu-fleet.io/cluster": "demo"}}}
    applied = {
        "kind": "Namespace",
        "metadata": {"name": "n", "labels": {**live["metadata"]["labels"], "gpu-fleet.io/cluster": "demo"}},
    }  # type: ignore[index]
    found = object_drifts(differences("Namespace n", live, applied, wanted, manager="gpu-fleet"), live, applied)
    assert found == [Drift(Kind.CHANGED, "Namespace n", "metadata.labels.gpu-fleet.io/cluster", "demo", "other")]


@pytest.mark.parametrize(
    ("kind", "path", "value", "text"),
    [
        ("Secret", ("data", "x"), "aHVudGVyMg==", "(hidden)"),
        ("Secret", ("metadata", "labels", "x"), "y", "y"),
        ("Deployment", ("spec", "containers", 0, "env", 0, "value"), "hunter2", "(hidden)"),
        ("", ("values", "registry", "password"), "hunter2", "(hidden)"),
        ("", ("values", "registry"), {"apiKey": "hunter2", "host": "h"}, {"apiKey": "(hidden)", "host": "h"}),
        ("", ("values", "list"), [{"token": "hunter2"}], [{"token": "(hidden)"}]),
        ("EC2NodeClass", ("spec", "metadataOptions", "httpTokens"), "optional", "optional"),
        ("EC2NodeClass", ("spec", "userData"), "#!/bin/sh\nexport TOKEN=hunter2", "(hidden)"),
        ("ConfigMap", ("data", "shared"), "version: v1", "version: v1"),
    ],
)
def test_nothing_is_shown_that_may_be_secret(kind: str, path: tuple[str | int, ...], value: Any, text: Any) -> None:
    assert shown(kind, path, value) == text


def test_a_long_value_is_cut() -> None:
    assert len(shown("ConfigMap", ("data", "x"), "x" * 100_000)) == MAX_VALUE + 1
    assert len(shown("ConfigMap", ("data",), {"x": "y" * 100_000})) == MAX_VALUE + 1


# --- releases ---
REQUEST = release_request(SPEC, "device-plugin")
NAME = "release nvidia-device-plugin/nvidia-device-plugin"


def stored(status: str = "deployed", number: int = 3) -> StoredRevision:
    return StoredRevision(number, ReleaseStatus(status), f"s{number}", f"u{number}", REQUEST.digest)


def payload(*, version: str | None = None, **values: Any) -> dict[str, Any]:
    chart = {"metadata": {"name": REQUEST.chart.name, "version": version or REQUEST.chart.version}}
    return {"chart": chart, "config": {**REQUEST.values, **values}}


def of_release(
    reason: Reason,
    revisions: tuple[StoredRevision, ...] = (stored(),),
    content: dict[str, Any] | None = None,
    *,
    proof_expected: bool = True,
) -> tuple[list[Drift], list[Unread]]:
    ledger = Ledger(candidate=Entry(2, "u2", REQUEST.digest, "", ""))
    seen = Observation("nvidia-device-plugin", "nvidia-device-plugin", revisions, ledger)
    finding = Finding(reason, "what was found")
    return release_drifts(
        finding, seen, REQUEST, payload() if content is None else content, proof_expected=proof_expected
    )


#: Each reason -> kind and field of the difference, or nothing, or what is not known.
OF_REASON: dict[Reason, tuple[str, str] | str | None] = {
    Reason.NO_RELEASE: ("deleted", ""),
    Reason.UNINSTALLED: ("deleted", ""),
    Reason.UNREADABLE: "permanent",
    Reason.HELD: "transient",
    Reason.IN_PROGRESS: "transient",
    Reason.NOT_OURS: ("changed", "revision"),
    Reason.FOREIGN_REVISION: ("changed", "revision"),
    Reason.UNINSTALLING: ("changed", "status"),
    Reason.PENDING_INSTALL: ("changed", "status"),
    Reason.PENDING_CHANGE: ("changed", "status"),
    Reason.TWO_DEPLOYED: ("changed", "status"),
    Reason.NONE_DEPLOYED: ("changed", "status"),
    Reason.FIRST_INSTALL_FAILED: ("changed", "status"),
    Reason.REVISION_FAILED: ("changed", "status"),
    Reason.DIGEST_DIFFERS: ("changed", "digest"),
    Reason.OBJECTS_DIFFER: None,
    Reason.NOT_PROVEN: ("changed", "proven"),
    Reason.PROVEN: None,
}


@pytest.mark.parametrize("reason", list(Reason))
def test_every_state_of_a_release_is_judged(reason: Reason) -> None:
    drifts, unread = of_release(reason)
    expected = OF_REASON[reason]
    if isinstance(expected, str):
        assert (drifts, [(item.object, item.transient) for item in unread]) == ([], [(NAME, expected == "transient")])
    else:
        assert unread == []
        assert [(item.kind, item.field, item.object) for item in drifts] == ([(*expected, NAME)] if expected else [])


def test_other_content_names_the_version_and_the_values_that_differ() -> None:
    drifts, _ = of_release(
        Reason.DIGEST_DIFFERS, content=payload(version="0.19.3", runtimeClassName="runc", mine={"password": "hunter2"})
    )
    assert drifts == [
        Drift(Kind.CHANGED, NAME, "chart.version", REQUEST.chart.version, "0.19.3"),
        Drift(Kind.ADDED, NAME, "values.mine", None, {"password": "(hidden)"}),
        Drift(Kind.CHANGED, NAME, "values.runtimeClassName", "nvidia", "runc"),
    ]


def test_a_persons_revision_is_named_with_what_it_changed() -> None:
    drifts, _ = of_release(Reason.FOREIGN_REVISION, content=payload(runtimeClassName="runc"))
    assert [(item.field, item.wanted) for item in drifts] == [("revision", 2), ("values.runtimeClassName", "nvidia")]


def test_a_plugin_that_no_node_could_prove_is_no_difference() -> None:
    assert of_release(Reason.NOT_PROVEN, proof_expected=False) == ([], [])


def test_a_missing_release_says_which_chart_is_wanted() -> None:
    ((drift,), _) = of_release(Reason.NO_RELEASE, (), {})
    assert REQUEST.chart.version in drift.wanted


# --- words ---
def test_the_sentence_names_the_first_differences_and_what_is_unknown() -> None:
    drifts = [Drift(Kind.CHANGED, f"NodePool p{i}", "spec.weight", 1, 2) for i in range(7)]
    text = sentence("demo", drifts, [Unread("RuntimeClass nvidia", "Forbidden", "may not be read")])
    assert "7 difference(s): NodePool p0: spec.weight changed: 2 instead of 1; " in text
    assert "p5" not in text
    assert "1 object(s) could not be compared: RuntimeClass nvidia: may not be read" in text
    assert sentence("demo", [], []) == "cluster demo is as its spec says"


@pytest.mark.parametrize(
    ("drift", "text"),
    [
        (Drift(Kind.DELETED, "RuntimeClass nvidia", wanted="present"), "RuntimeClass nvidia deleted"),
        (Drift(Kind.ADDED, "NodePool old", found="present"), "NodePool old added"),
        (Drift(Kind.DELETED, "NodePool p", "spec.taints", ["t"]), 'NodePool p: spec.taints deleted, wanted is ["t"]'),
        (Drift(Kind.ADDED, "NodePool p", "spec.x", None, 1, "kubectl"), "NodePool p: spec.x added by kubectl: 1"),
    ],
)
def test_words_of_a_difference(drift: Drift, text: str) -> None:
    assert str(drift) == text


def test_json_has_the_kind_the_object_the_field_and_both_values() -> None:
    assert Drift(Kind.CHANGED, "NodePool p", "spec.weight", 1, 7, "kubectl").to_json() == {
        "kind": "changed",
        "object": "NodePool p",
        "field": "spec.weight",
        "wanted": 1,
        "found": 7,
        "by": "kubectl",
    }
