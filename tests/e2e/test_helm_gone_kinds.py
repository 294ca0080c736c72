"""A kind is gone from the server while the deployed manifest still has an object of it: both majors of helm."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from gpu_fleet.core.errors import Invalid, ReleaseError
from gpu_fleet.core.kubernetes.kinds import CRD, SECRET, ObjectRef
from gpu_fleet.core.releases.storage import ReleaseStatus, decode_payload, with_manifest, with_status
from tests.e2e.helm_world import NAMESPACE, World, helm_binary, wait_for, world

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
]
STRANGERS = ObjectRef(CRD, "strangers.nobody.example.com")
DEFINITION: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": STRANGERS.name},
    "spec": {
        "group": "nobody.example.com",
        "scope": "Namespaced",
        "names": {"kind": "Stranger", "plural": "strangers", "singular": "stranger"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}


@pytest.fixture(params=[4, 3], ids=["helm4", "helm3"])
def place(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    helm = helm_binary(request.param)
    monkeypatch.setenv("HELM_BIN", helm)
    with world(tmp_path, helm) as found:
        yield found


def served(place: World) -> bool:
    return any(kind.kind == "Stranger" for kind in place.client.kinds("nobody.example.com/v1"))


def with_a_stranger(place: World) -> int:
    """A proven revision whose manifest has an object of a kind that is there, and then is not."""
    place.client.apply(DEFINITION)
    wait_for("the CRD is served", lambda: served(place))
    revision = place.install_proven({"message": "one", "unknownKind": True})
    place.client.delete(STRANGERS)
    wait_for("the CRD is gone", lambda: not served(place))
    return revision


def stored(place: World, revision: int) -> dict[str, Any]:
    found = place.client.get(ObjectRef(SECRET, f"sh.helm.release.v1.tiny.v{revision}", NAMESPACE))
    assert found is not None
    return dict(found)


def kinds_of(place: World, revision: int) -> list[tuple[str, str]]:
    manifest = decode_payload(stored(place, revision))["manifest"]
    return sorted((item["apiVersion"], item["kind"]) for item in yaml.safe_load_all(manifest) if item)


def test_an_upgrade_to_content_without_that_kind_succeeds(place: World) -> None:
    with_a_stranger(place)
    outcome = place.engine({"message": "two"}).install()
    assert outcome.actions == ("upgrade 2",)
    assert place.config() == {"message": "two"}
    place.settled()
    assert place.engine().roll_back(1).revision == 3
    assert place.config() == {"message": "one"}


def test_an_upgrade_that_still_wants_it_is_refused_before_anything_is_written(place: World) -> None:
    with_a_stranger(place)
    before = place.statuses()
    with pytest.raises(Invalid, match=r"Stranger \(nobody\.example\.com/v1\)"):
        place.engine({"message": "two", "unknownKind": True}).install()
    assert place.statuses() == before


def test_an_uninstall_removes_everything(place: World) -> None:
    with_a_stranger(place)
    assert place.engine().uninstall().leftovers == ()
    assert place.statuses() == {}
    assert place.config() is None


def test_a_release_that_is_stuck_uninstalling_because_of_it_is_uninstalled(place: World) -> None:
    """What helm itself, run by a person, or an earlier version of the package has left."""
    revision = with_a_stranger(place)
    stuck = with_status(stored(place, revision), ReleaseStatus.UNINSTALLING, "Deletion in progress")
    stuck["metadata"]["labels"]["modifiedAt"] = str(int(time.time()) - 3600)  # whoever ran it is long gone
    place.client.replace(stuck)
    assert place.engine().uninstall().leftovers == ()
    assert place.statuses() == {}
    assert place.config() is None


def test_a_rollback_to_what_needs_it_is_refused_by_name_and_leaves_the_release_as_it_is(place: World) -> None:
    place.client.apply(DEFINITION)
    wait_for("the CRD is served", lambda: served(place))
    place.engine({"message": "one", "unknownKind": True}).install()
    place.engine({"message": "two"}).install()
    place.client.delete(STRANGERS)
    wait_for("the CRD is gone", lambda: not served(place))
    before = place.statuses()
    with pytest.raises(ReleaseError, match=r"Stranger \(nobody\.example\.com/v1\)") as refused:
        place.engine().roll_back(1)
    assert refused.value.reason == "KindsGone"
    assert place.statuses() == before
    assert place.engine({"message": "three"}).install().actions == ("upgrade 3",)


def test_an_api_version_that_was_removed_is_replaced_by_the_one_that_is_served(place: World) -> None:
    """An object of ``apps/v1beta1`` is the same object in ``apps/v1``: it must not be lost from sight."""
    revision = place.install_proven({"message": "one"})
    secret = stored(place, revision)
    manifest = decode_payload(secret)["manifest"].replace("apps/v1\n", "apps/v1beta1\n")
    assert "apps/v1beta1" in manifest
    place.client.replace(with_manifest(secret, manifest))
    assert place.engine({"message": "two"}).install().actions == ("upgrade 2",)
    assert ("apps/v1", "Deployment") in kinds_of(place, revision)
    assert place.engine().uninstall().leftovers == ()
    assert place.client.get(place.deployment()) is None
