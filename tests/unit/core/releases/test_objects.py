"""What a manifest holds, what may be deleted, what may be shown."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.releases.objects import (
    ObjectId,
    belongs_to,
    crds,
    documents,
    leaked,
    may_be_pruned,
    object_ids,
    passing,
    readable_manifest,
    types_of,
    with_served_types,
    without_kinds,
    workloads,
)

MANIFEST = """
---
# Source: tiny/templates/a.yaml
apiVersion: v1
kind: Secret
metadata: {name: s}
data: {password: aHVudGVyMg==}
---
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: d, namespace: other}
---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.example.com}
spec: {group: example.com}
---
apiVersion: v1
kind: ConfigMapList
items:
  - {apiVersion: v1, kind: ConfigMap, metadata: {name: one}}
---
"""


def live(kind: str = "ConfigMap", release: str = "tiny", **annotations: str) -> dict[str, Any]:
    ours = {"meta.helm.sh/release-name": release, "meta.helm.sh/release-namespace": "ns"}
    return {"kind": kind, "metadata": {"name": "x", "annotations": {**ours, **annotations}}}


def test_objects_of_a_manifest() -> None:
    found = object_ids(MANIFEST, "ns")
    assert [f"{item.kind}/{item.namespace}/{item.name}" for item in found] == [
        "CustomResourceDefinition/ns/widgets.example.com", "DaemonSet/other/d", "ConfigMap/ns/one", "Secret/ns/s",
    ]  # fmt: skip
    assert [ObjectId.parse(str(item)) for item in found] == list(found)
    assert workloads(MANIFEST, "ns") == ("DaemonSet/other/d",)
    assert crds(MANIFEST) == ("widgets.example.com",)


def test_jobs_that_the_cluster_deletes_are_named() -> None:
    job = "{apiVersion: batch/v1, kind: Job, metadata: {name: %s}, spec: {%s}}"
    manifest = "\n---\n".join([job % ("stays", ""), job % ("goes", "ttlSecondsAfterFinished: 0"), MANIFEST])
    assert passing(manifest, "ns") == ("Job/ns/goes",)
    assert set(passing(manifest, "ns")) < set(workloads(manifest, "ns"))


@pytest.mark.parametrize("text", ["", "---\n", "null\n", "- a\n", "just text\n"])
def test_a_manifest_without_objects(text: str) -> None:
    assert object_ids(text, "ns") == ()


def test_leaked_is_what_only_dead_revisions_list() -> None:
    current = "{apiVersion: v1, kind: Secret, metadata: {name: s}}"
    assert {item.kind for item in leaked([MANIFEST], current, "ns")} == {
        "ConfigMap", "DaemonSet", "CustomResourceDefinition",
    }  # fmt: skip
    assert leaked([MANIFEST], MANIFEST, "ns") == ()


@pytest.mark.parametrize(
    ("obj", "expected"),
    [
        (live(), True),
        (live(release="other"), False),
        (live(kind="CustomResourceDefinition"), False),
        (live(kind="PersistentVolumeClaim"), False),
        (live(**{"helm.sh/resource-policy": "keep"}), False),
        ({"kind": "ConfigMap", "metadata": {"name": "x"}}, False),
    ],
    ids=["ours", "another release's", "a CRD", "a claim", "to be kept", "nobody's"],
)
def test_what_may_be_pruned(obj: dict[str, Any], expected: bool) -> None:
    assert may_be_pruned(obj, "tiny", "ns") is expected


def test_a_release_of_the_same_name_in_another_namespace_is_another_one() -> None:
    assert not belongs_to(live(), "tiny", "elsewhere")


def test_people_see_no_secrets() -> None:
    text = readable_manifest(MANIFEST)
    assert "aHVudGVyMg" not in text
    assert "password: (hidden)" in text
    assert "kind: DaemonSet" in text
    assert "example.com" in text


def test_kinds_can_be_taken_out_of_a_manifest() -> None:
    rest, removed = without_kinds(MANIFEST, frozenset({"CustomResourceDefinition"}))
    assert removed == ("CustomResourceDefinition/widgets.example.com",)
    assert crds(rest) == ()
    assert len(object_ids(rest, "ns")) == 3
    assert without_kinds(MANIFEST, frozenset({"Job"})) == (MANIFEST, ())


# --- kinds that the server no longer has -----------------------------------------------------------------------------

OLD = """---
apiVersion: policy/v1beta1
kind: PodDisruptionBudget
metadata: {name: budget}
spec: {minAvailable: 1}
---
apiVersion: nobody.example.com/v1
kind: Stranger
metadata: {name: s}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: c}
"""


def test_a_manifest_is_made_of_types_that_the_server_has() -> None:
    gone = {("policy/v1beta1", "PodDisruptionBudget"): "policy/v1", ("nobody.example.com/v1", "Stranger"): None}
    manifest, changed = with_served_types(OLD, gone)
    assert types_of(manifest) == (("policy/v1", "PodDisruptionBudget"), ("v1", "ConfigMap"))
    assert changed == (
        "PodDisruptionBudget/budget moved from policy/v1beta1 to policy/v1",
        "Stranger/s left out (nobody.example.com/v1 has no such kind any more)",
    )
    (budget,) = (item for item in documents(manifest) if item["kind"] == "PodDisruptionBudget")
    assert budget["spec"] == {"minAvailable": 1}
    assert with_served_types(manifest, gone) == (manifest, ())


def test_a_manifest_of_served_types_is_left_as_it_is_to_the_letter() -> None:
    assert with_served_types(OLD, {}) == (OLD, ())
