"""The ledger: what survives a round trip, and what each step does to it."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from gpu_fleet.core.releases.ledger import Entry, Intent, Ledger, parse_ledger, render_ledger
from gpu_fleet.core.releases.storage import ReleaseStatus, StoredRevision, fingerprint, payload_content

ENTRY = Entry(3, "abc", "uid-3", "2026-01-01T00:00:00Z", "dag/run")
INTENT = Intent("rollback", 4, "abc", "2026-01-01T00:00:00Z", "dag/run", copy_of=3, objects=("v1/Secret/ns/x",),
                content="c", base_revision=3, base_uid="uid-3")  # fmt: skip


@pytest.mark.parametrize(
    "ledger",
    [
        Ledger(),
        Ledger(candidate=ENTRY),
        Ledger(candidate=replace(ENTRY, revision=4, copy_of=3), proven=ENTRY, intent=INTENT),
    ],
    ids=["empty", "candidate", "everything"],
)
def test_a_ledger_goes_round(ledger: Ledger) -> None:
    stored = render_ledger(ledger, "plugin", "ns")
    stored["metadata"]["resourceVersion"] = "12"
    assert parse_ledger(stored) == replace(ledger, version="12")
    assert render_ledger(replace(ledger, version="12"), "plugin", "ns")["metadata"]["resourceVersion"] == "12"


def test_no_config_map_is_an_empty_ledger() -> None:
    assert parse_ledger(None).empty


@pytest.mark.parametrize("text", ["{", "[]", '{"revision": 1}', '{"revision": "x", "digest": ""}'])
def test_a_damaged_ledger_is_not_taken_for_an_empty_one(text: str) -> None:
    with pytest.raises(ValueError, match="ns/gpu-fleet-release-plugin"):
        parse_ledger({"metadata": {"namespace": "ns", "name": "gpu-fleet-release-plugin"}, "data": {"proven": text}})


def test_an_install_forgets_what_was_proven_of_an_earlier_life() -> None:
    before = Ledger(candidate=ENTRY, proven=ENTRY)
    assert before.intending(replace(INTENT, action="install")).proven is None
    assert before.intending(INTENT).proven == ENTRY


def test_a_rollback_to_the_proven_revision_moves_the_proof_to_the_copy() -> None:
    copy = Entry(7, "abc", "uid-7", "2026-01-02T00:00:00Z", "dag/run2", copy_of=3)
    after = Ledger(candidate=replace(ENTRY, revision=6), proven=ENTRY, intent=INTENT).with_candidate(copy)
    assert after.candidate_is_proven
    assert after.intent is None
    assert after.proven is not None
    assert (after.proven.revision, after.proven.uid, after.proven.when) == (7, "uid-7", ENTRY.when)


def test_an_upgrade_leaves_the_proof_where_it_is() -> None:
    after = Ledger(proven=ENTRY).with_candidate(Entry(4, "new", "uid-4", "", ""))
    assert after.proven == ENTRY
    assert not after.candidate_is_proven


def test_the_ledger_knows_its_own_dead_operation_but_not_a_persons() -> None:
    ledger = Ledger(candidate=ENTRY, intent=Intent("upgrade", 4, "new", "", ""))
    ours = StoredRevision(4, ReleaseStatus.PENDING_UPGRADE, "s", "uid-4", "new")
    assert ledger.knows(ours)
    assert not ledger.knows(replace(ours, digest="abc"))  # a person's upgrade inherits the old label
    assert not ledger.knows(replace(ours, revision=5))


def test_a_persons_revision_with_the_number_and_label_of_our_dead_command_is_not_ours() -> None:
    """A correction to the same content died before it wrote; helm copied its label to the person's revision."""
    ours = fingerprint("tiny", "1.0.0", {"message": "one"})
    ledger = Ledger(candidate=ENTRY, intent=Intent("upgrade", 4, "abc", "", "", content=ours))
    stored = StoredRevision(4, ReleaseStatus.DEPLOYED, "s", "uid-4", "abc", content=ours)
    assert ledger.knows(stored)
    theirs = replace(stored, content=fingerprint("tiny", "1.0.0", {"message": "two"}))
    assert not ledger.knows(theirs)
    assert not ledger.knows(replace(stored, content=fingerprint("tiny", "1.0.1", {"message": "one"})))


@pytest.mark.parametrize("intent_has_it", [True, False])
def test_where_a_content_is_not_known_number_and_label_tell(intent_has_it: bool) -> None:
    """Ledgers of earlier versions have none, and payloads of superseded revisions are not read."""
    known = fingerprint("tiny", "1.0.0", {})
    ledger = Ledger(intent=Intent("upgrade", 4, "abc", "", "", content=known if intent_has_it else ""))
    assert ledger.knows(
        StoredRevision(4, ReleaseStatus.DEPLOYED, "s", "u", "abc", content="" if intent_has_it else known)
    )


def test_a_contents_fingerprint_is_that_of_what_helm_stores() -> None:
    stored = {"chart": {"metadata": {"name": "tiny", "version": "v1.0.0"}}, "config": {"b": 1, "a": {"x": [2.0]}}}
    assert payload_content(stored) == fingerprint("tiny", "1.0.0", {"a": {"x": [2], "y": None}, "b": 1.0})
    assert payload_content(stored) != fingerprint("tiny", "1.0.0", {"b": 1})


@pytest.mark.parametrize(
    ("asked", "stored"),
    [
        (2**53, "9007199254740992"),
        (2**53 + 1, "9007199254740992"),
        (-(2**53) - 1, "-9007199254740992"),
        (2**63 - 1, "9223372036854775807"),  # Go prints the digits that suffice to read the same float64
        (2**63 - 1, "9223372036854775808"),
        (10**21 + 1, "1e+21"),
        (0.1, "0.1"),
        (1.5e300, "1.5e+300"),
    ],
)
def test_a_number_beyond_what_a_float64_holds_has_the_fingerprint_of_what_helm_stores(
    asked: float, stored: str
) -> None:
    chart = {"metadata": {"name": "tiny", "version": "1.0.0"}}
    payload = json.loads(f'{{"chart": {json.dumps(chart)}, "config": {{"id": {stored}}}}}')
    assert payload_content(payload) == fingerprint("tiny", "1.0.0", {"id": asked})


@pytest.mark.parametrize(("one", "other"), [(2**53, 2**53 + 2), (1, True), (0, False), (1, "1"), (0.1, 0.2)])
def test_values_that_helm_tells_apart_have_fingerprints_of_their_own(one: object, other: object) -> None:
    assert fingerprint("tiny", "1.0.0", {"id": one}) != fingerprint("tiny", "1.0.0", {"id": other})


def test_a_number_that_helm_refuses_has_a_fingerprint_all_the_same() -> None:
    assert fingerprint("tiny", "1.0.0", {"id": 10**400}) != fingerprint("tiny", "1.0.0", {"id": 10**400 + 1})


def test_a_command_that_died_before_writing_does_not_disown_the_revision_before_it() -> None:
    dead = StoredRevision(4, ReleaseStatus.FAILED, "s", "uid-4", "new")
    ledger = Ledger(candidate=ENTRY, intent=Intent("upgrade", 5, "newer", "", "", base_revision=4, base_uid="uid-4"))
    assert ledger.knows(dead)
    assert not ledger.knows(replace(dead, uid="uid-other"))


def test_only_a_candidate_can_be_proven() -> None:
    with pytest.raises(ValueError, match="no candidate"):
        Ledger().with_proven("now", "dag/run")
