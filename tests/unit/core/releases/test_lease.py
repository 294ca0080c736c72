"""Who may take a release's Lease."""

from __future__ import annotations

import pytest

from gpu_fleet.core.releases.lease import (
    CLOCK_SKEW_SECONDS,
    LEASE_SECONDS,
    TAKEOVER_GRACE_SECONDS,
    LeaseRecord,
    looks_alive,
    may_take,
    parse_lease,
    render_lease,
)

NOW = 1_700_000_000.0


def held(age: float, holder: str = "other") -> LeaseRecord:
    return LeaseRecord(holder, NOW - age, LEASE_SECONDS, "5")


@pytest.mark.parametrize(
    ("record", "unchanged_for", "expected"),
    [
        (None, 0.0, True),
        (held(0.0, ""), 0.0, True),
        (held(0.0, "me"), 0.0, True),
        (held(0.0), 0.0, False),
        (held(LEASE_SECONDS + 1.0), 0.0, False),
        (held(3600.0), LEASE_SECONDS - 1.0, False),
        (held(-3600.0), LEASE_SECONDS - 1.0, False),
        (held(-3600.0), LEASE_SECONDS + TAKEOVER_GRACE_SECONDS - 0.1, False),
        (held(-3600.0), LEASE_SECONDS + TAKEOVER_GRACE_SECONDS, True),
    ],
    ids=[
        "no lease", "released", "our own", "fresh", "old by our clock", "holder's clock is behind",
        "holder's clock is ahead", "its holder may be ending its helm", "its holder's helm is dead",
    ],
)  # fmt: skip
def test_who_may_take_it(record: LeaseRecord | None, unchanged_for: float, expected: bool) -> None:
    assert may_take(record, "me", unchanged_for) is expected


@pytest.mark.parametrize(
    ("record", "holder"),
    [
        (None, None),
        (held(0.0, ""), None),
        (held(0.0, "me"), None),
        (held(0.0), "other"),
        (held(-3600.0), "other"),
        (held(LEASE_SECONDS + CLOCK_SKEW_SECONDS - 1.0), "other"),
        (held(LEASE_SECONDS + CLOCK_SKEW_SECONDS + 1.0), None),
    ],
    ids=["no lease", "released", "our own", "fresh", "clock ahead", "within clock skew", "beyond it"],
)
def test_who_seems_to_be_at_work(record: LeaseRecord | None, holder: str | None) -> None:
    """Only for a look: whoever writes takes the Lease first, and trusts nobody's clock."""
    assert looks_alive(record, "me", NOW) == holder


def test_a_lease_goes_round() -> None:
    body = render_lease("plugin", "ns", "me", NOW, previous=None)
    body["metadata"].update(resourceVersion="9", uid="u")
    record = parse_lease(body)
    assert record == LeaseRecord("me", NOW, LEASE_SECONDS, "9", "u", 0)


def test_taking_over_counts_a_transition_and_swaps_by_version() -> None:
    body = render_lease("plugin", "ns", "me", NOW, previous=held(100.0))
    assert body["spec"]["leaseTransitions"] == 1
    assert body["metadata"]["resourceVersion"] == "5"


def test_releasing_keeps_the_object_without_a_holder() -> None:
    body = render_lease("plugin", "ns", "", NOW, previous=held(1.0, "me"))
    assert parse_lease(body) is not None
    assert may_take(parse_lease(body), "other", 0.0)


@pytest.mark.parametrize("spec", [{}, {"renewTime": "nonsense", "holderIdentity": None}])
def test_a_lease_without_content_is_free(spec: dict[str, object]) -> None:
    assert may_take(parse_lease({"metadata": {}, "spec": spec}), "me", 0.0)
