"""The end-to-end tests' verdict on a release: it finds what it says it looks for."""

from __future__ import annotations

import base64
import gzip
import json
from typing import Any

import pytest

from tests.e2e.helm_world import NAMESPACE, Stored

OWNER = {"meta.helm.sh/release-name": "tiny", "meta.helm.sh/release-namespace": NAMESPACE}
MANIFEST = "---\nkind: ConfigMap\nmetadata: {name: tiny-config}\n---\nkind: Deployment\nmetadata: {name: tiny}\n"


def owned(kind: str, name: str, **fields: Any) -> dict[str, Any]:
    metadata = {"name": name, "labels": {"app.kubernetes.io/managed-by": "Helm"}, "annotations": OWNER}
    return {"kind": kind, "metadata": metadata, **fields}


def world() -> list[dict[str, Any]]:
    """What kubectl shows of a release that is as it should be."""
    payload = {"info": {"status": "deployed"}, "config": {"message": "m"}, "manifest": MANIFEST}
    stored = base64.b64encode(base64.b64encode(gzip.compress(json.dumps(payload).encode()))).decode()
    labels = {"name": "tiny", "version": "1", "status": "deployed", "gpu-fleet.io/digest": "d"}
    entry = json.dumps({"revision": 1, "uid": "u", "digest": "d"})
    return [
        {"kind": "Secret", "type": "helm.sh/release.v1", "data": {"release": stored},
         "metadata": {"name": "s", "uid": "u", "labels": labels}},
        {"kind": "ConfigMap", "metadata": {"name": "gpu-fleet-release-tiny"},
         "data": {"candidate": entry, "proven": entry}},
        owned("ConfigMap", "tiny-config", data={"message": "m"}),
        owned("Deployment", "tiny"),
    ]  # fmt: skip


def test_a_release_that_is_right_has_no_problems() -> None:
    assert Stored.parse(world()).problems("m", "d") == []
    assert Stored.parse(world()).problems("m", None) == []


@pytest.mark.parametrize("proven", ["other", ""])
def test_another_proven_content_than_wanted_is_a_problem(proven: str) -> None:
    (problem,) = Stored.parse(world()).problems("m", proven)
    assert "is proven, wanted is" in problem


def test_a_lost_proven_entry_is_a_problem() -> None:
    items = world()
    del items[1]["data"]["proven"]
    (problem,) = Stored.parse(items).problems("m", "d")
    assert "wanted is d" in problem


@pytest.mark.parametrize("leak", [owned("DaemonSet", "tiny"), owned("ConfigMap", "tiny")], ids=["kind", "name"])
def test_a_leaked_object_is_a_problem_though_its_name_is_in_the_manifest(leak: dict[str, Any]) -> None:
    (problem,) = Stored.parse([*world(), leak]).problems("m", "d")
    assert f"leaked: ['{leak['kind']}/tiny']" in problem


def test_a_missing_object_is_a_problem() -> None:
    (problem,) = Stored.parse(world()[:-1]).problems("m", "d")
    assert "missing: ['Deployment/tiny']" in problem


def test_another_releases_objects_are_none() -> None:
    other = owned("DaemonSet", "agent")
    other["metadata"]["annotations"] = {**OWNER, "meta.helm.sh/release-name": "tiny-agent"}
    assert Stored.parse([*world(), other]).problems("m", "d") == []
