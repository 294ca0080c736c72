from __future__ import annotations

from dataclasses import replace

from gpu_fleet.core.aws.costs import PriceList, SpotPrices
from gpu_fleet.core.preflight.facts import State
from gpu_fleet.core.preflight.prices import judge_prices
from tests.unit.core.specs import demo_spec

LISTED = PriceList("us-west-2", "2026-11-30", "AWS", {"g5.xlarge": 1.006, "g6.xlarge": 0.8, "p4d.24xlarge": 21.96})
SPOT = SpotPrices("10:42 UTC on 2026-11-30", {"g5.xlarge": {"us-west-2b": 0.5, "us-west-2a": 0.4}})


def one(prices: PriceList, **changes: object) -> tuple[State, str, str]:
    spec = demo_spec(nodePools__0__instanceTypes=["g5.xlarge"], **changes)
    found = judge_prices(spec, prices)[0]
    return found.state, found.message, found.remedy


def test_what_a_node_costs_is_said_with_the_date() -> None:
    state, message, remedy = one(replace(LISTED, spot=SPOT), nodePools__0__capacityTypes=["spot", "on-demand"])
    assert state is State.MET
    assert remedy == ""
    assert message.startswith(
        "g5.xlarge: on-demand 1.01 USD/h, spot 0.40 USD/h (us-west-2a) to 0.50 USD/h (us-west-2b)"
    )
    assert "List prices of 2026-11-30" in message
    assert "Spot prices of 10:42 UTC" in message


def test_a_pool_without_spot_says_nothing_of_spot() -> None:
    _, message, _ = one(replace(LISTED, spot=SPOT), nodePools__0__capacityTypes=["on-demand"])
    assert "spot" not in message.lower()


def test_a_missing_permission_is_unknown_and_names_the_action() -> None:
    gap = "AWS did not give its list prices: pricing:GetProducts is not allowed"
    state, message, remedy = one(replace(LISTED, gaps=(gap,)))
    assert state is State.UNKNOWN
    assert "pricing:GetProducts is not allowed" in message
    assert "no run needs them" in remedy


def test_a_type_without_a_price_is_unknown_and_never_free() -> None:
    state, message, remedy = one(PriceList.unknown("us-west-2"))
    assert state is State.UNKNOWN
    assert "g5.xlarge: on-demand unknown price" in message
    assert "g5.xlarge" in remedy
    assert "0.00" not in message


def test_pools_of_others_are_left_out() -> None:
    spec = demo_spec(nodePools__0__manage=False, teardown__uninstallKarpenter=False)
    assert f"prices of pool {spec.node_pools[0].name}" not in {each.name for each in judge_prices(spec, LISTED)}
