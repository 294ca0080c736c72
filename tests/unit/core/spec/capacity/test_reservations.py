"""Capacity reservations in the cluster file: what is refused, and what the manifests then say."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.manifests.build import build
from gpu_fleet.core.spec import SpecErrors
from gpu_fleet.core.spec.notes import notes_of
from tests.unit.core.specs import demo_spec

ID = {"id": "cr-0123456789abcdef0"}
POOL = "nodePools__1__"
RESERVED = {f"{POOL}capacityTypes": ["reserved"]}
WITH_ID = {**RESERVED, f"{POOL}capacityReservations": [ID]}

#: situation -> changes, field, part of the message, part of the remedy
BROKEN: dict[str, tuple[dict[str, Any], str, str, str]] = {
    "reserved without a reservation": (RESERVED, "nodePools[1].capacityTypes", "no capacity reservation", "name"),
    "reservations without the type": (
        {f"{POOL}capacityReservations": [ID]},
        "nodePools[1].capacityReservations",
        "may not launch into them",
        "add 'reserved'",
    ),
    "reservations of the class that no pool uses": (
        {"nodeClass__capacityReservations": [ID]},
        "nodeClass.capacityReservations",
        "none has the capacity type",
        "add 'reserved'",
    ),
    "reservations of a pool that others manage": (
        {**WITH_ID, f"{POOL}manage": False},
        "nodePools[1].capacityReservations",
        "belongs to others",
        "remove it",
    ),
    "a block beside other capacity": (
        {
            f"{POOL}capacityTypes": ["reserved", "on-demand"],
            f"{POOL}capacityReservations": [ID],
            f"{POOL}capacityBlock": {},
        },
        "nodePools[1].capacityBlock",
        "reserved, on-demand",
        "capacityTypes: [reserved]",
    ),
    "the feature gate is off": (
        {**WITH_ID, "karpenter__settings": {"featureGates": {"reservedCapacity": False}}},
        "karpenter.settings.featureGates.reservedCapacity",
        "turns off",
        "remove it",
    ),
    "an id and tags": (
        {**RESERVED, f"{POOL}capacityReservations": [{**ID, "tags": {"team": "ml"}}]},
        "nodePools[1].capacityReservations[0]",
        "id stands alone",
        "another entry",
    ),
    "an owner alone": (
        {**RESERVED, f"{POOL}capacityReservations": [{"owner": "123456789012"}]},
        "nodePools[1].capacityReservations[0]",
        "chooses no reservation",
        "id or tags",
    ),
    "an empty tag": (
        {**RESERVED, f"{POOL}capacityReservations": [{"tags": {"team": ""}}]},
        "nodePools[1].capacityReservations[0].tags",
        "empty tag key or value",
        "for any",
    ),
    "the id of a block": (
        {**RESERVED, f"{POOL}capacityReservations": [{"id": "cb-0123"}]},
        "nodePools[1].capacityReservations[0].id",
        "id of a Capacity Block",
        "cr-",
    ),
    "an ARN": (
        {
            **RESERVED,
            f"{POOL}capacityReservations": [{"id": "arn:aws:ec2:us-west-2:123456789012:capacity-reservation/cr-0123"}],
        },
        "nodePools[1].capacityReservations[0].id",
        "is an ARN",
        "id at its end",
    ),
    "an owner without quotes": (
        {**RESERVED, f"{POOL}capacityReservations": [{"tags": {"team": "ml"}, "owner": "1234"}]},
        "nodePools[1].capacityReservations[0].owner",
        "not the id of an AWS account",
        "12 digits",
    ),
    "no time for the drain": (
        {**WITH_ID, f"{POOL}capacityBlock": {"margin": "60m"}},
        "nodePools[1].capacityBlock",
        "leaves no time for the drain",
        "margin:",
    ),
}


@pytest.mark.parametrize("situation", BROKEN)
def test_it_is_refused_with_field_and_remedy(situation: str) -> None:
    changes, field, message, remedy = BROKEN[situation]
    with pytest.raises(SpecErrors) as refused:
        demo_spec(**changes)
    found = {error.field: error for error in refused.value.problems}
    assert field in found, [str(error) for error in refused.value.problems]
    assert message in str(found[field])
    assert remedy in str(found[field])


def test_the_manifests_of_other_pools_do_not_change() -> None:
    spec, reserved = demo_spec(), demo_spec(**WITH_ID)
    for builder in ("node_class", "node_pool"):
        assert build(builder, spec, pool="shared-a10g") == build(builder, reserved, pool="shared-a10g")
    (plain,) = build("node_class", spec, pool="whole-a100")
    assert "capacityReservationSelectorTerms" not in plain["spec"]


def requirements(spec: Any) -> dict[str, list[str]]:
    (pool,) = build("node_pool", spec, pool="whole-a100")
    return {each["key"]: each["values"] for each in pool["spec"]["template"]["spec"]["requirements"]}


def test_a_pool_of_its_own_reservations() -> None:
    terms = [ID, {"tags": {"team": "ml", "use": "*"}, "owner": "123456789012"}]
    spec = demo_spec(**{**WITH_ID, f"{POOL}capacityReservations": terms})
    (found,) = build("node_class", spec, pool="whole-a100")
    assert found["spec"]["capacityReservationSelectorTerms"] == [
        ID,
        {"tags": {"team": "ml", "use": "*"}, "ownerID": "123456789012"},
    ]
    assert requirements(spec)["karpenter.sh/capacity-type"] == ["reserved"]
    # Its nodes do not end: no block may be launched into.
    assert requirements(spec)["karpenter.k8s.aws/capacity-reservation-type"] == ["default"]


def test_a_pool_of_the_node_classs_reservations() -> None:
    spec = demo_spec(**{"nodeClass__capacityReservations": [ID], f"{POOL}capacityTypes": ["reserved", "on-demand"]})
    (found,) = build("node_class", spec, pool="whole-a100")
    assert found["spec"]["capacityReservationSelectorTerms"] == [ID]
    # The label is on reserved nodes alone, so a requirement would exclude the on-demand ones.
    assert "karpenter.k8s.aws/capacity-reservation-type" not in requirements(spec)
    (other,) = build("node_class", spec, pool="shared-a10g")
    assert "capacityReservationSelectorTerms" not in other["spec"]


def test_a_pool_of_a_capacity_block() -> None:
    spec = demo_spec(**{**WITH_ID, f"{POOL}capacityBlock": {}})
    assert requirements(spec)["karpenter.k8s.aws/capacity-reservation-type"] == ["capacity-block"]
    block = spec.pool("whole-a100").capacity_block
    assert block is not None
    assert (block.margin.text, block.notice.text, block.empty_before.text) == ("75m", "15m", "45m")


@pytest.mark.parametrize(("empty_before", "noted"), [("45m", False), ("40m", False), ("35m", True)])
def test_a_drain_that_karpenter_joins_is_noted(empty_before: str, noted: bool) -> None:
    spec = demo_spec(**{**WITH_ID, f"{POOL}capacityBlock": {"emptyBefore": empty_before}})
    fields = [note.field for note in notes_of(spec)]
    assert ("nodePools[1].capacityBlock.emptyBefore" in fields) is noted
