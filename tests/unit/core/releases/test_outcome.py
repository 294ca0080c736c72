"""What a call reports: to operators as types, to XCom as text."""

from __future__ import annotations

import pytest

from gpu_fleet.core.releases.leftovers import Fate, Leftover
from gpu_fleet.core.releases.outcome import Outcome, outcome_of
from gpu_fleet.core.releases.state import Observation
from gpu_fleet.core.releases.storage import ReleaseStatus, StoredRevision

KEPT = Leftover("CustomResourceDefinition widgets.example.com", Fate.KEPT)
HELD = Leftover("ConfigMap ns/a", Fate.TERMINATING, "example.com/hold")


@pytest.mark.parametrize("fate", list(Fate))
def test_only_what_terminates_is_waited_for(fate: Fate) -> None:
    assert Leftover("ConfigMap ns/a", fate).terminating is (fate is Fate.TERMINATING)


def test_leftovers_are_text_in_xcom_and_types_before() -> None:
    outcome = Outcome("r", "ns", leftovers=(KEPT, HELD))
    assert outcome.terminating
    assert not Outcome("r", "ns", leftovers=(KEPT,)).terminating
    assert outcome.to_json()["leftovers"] == [
        "CustomResourceDefinition widgets.example.com (kept)",
        "ConfigMap ns/a (terminating): example.com/hold",
    ]


def test_an_absent_release_has_no_revision() -> None:
    found = outcome_of(Observation("r", "ns"), "", ["uninstall 1"])
    assert (found.revision, found.actions, found.history) == (None, ("uninstall 1",), ())


def test_the_newest_revision_is_reported_with_what_its_manifest_lists() -> None:
    stored = StoredRevision(3, ReleaseStatus.DEPLOYED, "sh.helm.release.v1.r.v3", "uid-3", "digest")
    manifest = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\n"
    found = outcome_of(Observation("r", "ns", (stored,)), manifest, [])
    assert (found.revision, found.secret_uid, found.proven) == (3, "uid-3", False)
    assert found.workloads == ("Deployment/ns/web",)
    assert found.history == ("3 deployed",)
