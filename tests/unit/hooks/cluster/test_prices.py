"""Prices of the sandbox's AWS, whose figures are not the package's, and what is said when it does not answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gpu_fleet.core.aws.costs import PriceList
from gpu_fleet.core.interruptions.nodes import OurNode, Owner
from gpu_fleet.hooks.aws import forget_sessions
from gpu_fleet.hooks.cluster import prices as module
from gpu_fleet.hooks.cluster.prices import LIVE_VARIABLE, prices_for, prices_of_instances, prices_of_nodes
from gpu_fleet.hooks.files.price_cache import CACHE_VARIABLE
from gpu_fleet.hooks.files.templates import INCLUDE_DIR_VARIABLE
from tests.unit.core.specs import demo_spec
from tests.unit.sandboxed import SandboxCloud, only_connections, sandbox_cloud

NOON = 1_790_000_000.0  # 2026-09-21 14:13:20 UTC


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SandboxCloud]:
    with sandbox_cloud(tmp_path_factory.mktemp("sandbox")) as found:
        yield found


@pytest.fixture(autouse=True)
def cloud(
    shared: SandboxCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, prices_of_files: None
) -> Iterator[SandboxCloud]:
    only_connections(monkeypatch, aws_demo=shared.connection)
    monkeypatch.delenv(LIVE_VARIABLE)
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    yield shared
    shared.settings.faults.clear()
    forget_sessions()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What AWS is asked."""
    found: list[str] = []
    for name in ("list_price", "spot_prices"):
        real = getattr(module, name)

        def counted(*args: Any, name: str = name, real: Any = real) -> Any:
            found.append(name)
            return real(*args)

        monkeypatch.setattr(module, name, counted)
    return found


def look(*types: str, spot: bool = True, now: float = NOON) -> PriceList:
    return prices_for(demo_spec(), types or ("g5.xlarge",), spot=spot, now=lambda: now)


def test_what_aws_lists_today_comes_before_every_file(cloud: SandboxCloud) -> None:
    cloud.settings.faults.set("list-price:a", {"type": "g5.xlarge", "usd": 2.5})
    price = look().instance("g5.xlarge")
    assert price.usd == 2.5
    assert price.origin == ("List prices of 2026-09-21 for us-west-2: AWS Price List API",)


def test_spot_is_priced_by_its_zone_and_by_the_dearest_where_that_is_unknown(cloud: SandboxCloud) -> None:
    cloud.settings.faults.set("spot-price:a", {"type": "g5.xlarge", "zone": "us-west-2b", "usd": 0.7})
    prices = look()
    in_zone, anywhere = prices.instance("g5.xlarge", "spot", "us-west-2b"), prices.instance("g5.xlarge", "spot")
    assert (in_zone.usd, in_zone.at_most) == (0.7, False)
    assert (anywhere.usd, anywhere.at_most) == (0.7, True)
    assert in_zone.origin == ("Spot prices of 14:13 UTC on 2026-09-21: EC2, DescribeSpotPriceHistory",)
    assert prices.instance("g5.xlarge", "on-demand", "us-west-2b").usd == 1.006


def test_a_spot_type_without_a_spot_price_costs_at_most_its_list_price(cloud: SandboxCloud) -> None:
    price = look(spot=False).instance("g5.xlarge", "spot")
    assert (price.usd, price.at_most) == (1.006, True)


def test_a_price_that_aws_does_not_list_comes_from_the_files_with_their_date(cloud: SandboxCloud) -> None:
    cloud.settings.faults.set("list-price:a", {"type": "g5.xlarge", "usd": None})
    prices = look("g5.xlarge", "g6.xlarge")
    assert prices.instance("g5.xlarge").origin[0].startswith("List prices of 2025-06-05 for us-west-2: Amazon EC2")
    assert "AWS Price List API" in prices.instance("g6.xlarge").origin[0]


@pytest.mark.parametrize(
    ("action", "what"),
    [("pricing:GetProducts", "list prices"), ("ec2:DescribeSpotPriceHistory", "spot prices")],
)
def test_a_missing_permission_is_said_beside_the_sum_and_fails_nothing(
    cloud: SandboxCloud, action: str, what: str
) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": [action]})
    prices = look()
    price = prices.instance("g5.xlarge", "spot", "us-west-2a")
    assert price.usd is not None
    assert price.usd > 0
    assert f"AWS did not give its {what}: {action} is not allowed" in prices.describe(price)


def test_without_any_permission_the_files_answer(cloud: SandboxCloud) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": ["pricing:GetProducts", "ec2:DescribeSpotPriceHistory"]})
    price = look().instance("g5.xlarge", "spot")
    assert (price.usd, price.at_most) == (1.006, True)
    assert price.origin[0].startswith("List prices of 2025-06-05")


def test_an_answer_is_kept_a_day_and_a_spot_price_ten_minutes(cloud: SandboxCloud, calls: list[str]) -> None:
    look()
    look(now=NOON + 599)
    assert calls == ["list_price", "spot_prices"]
    look(now=NOON + 600)
    assert calls == ["list_price", "spot_prices", "spot_prices"]
    look(now=NOON + 86_399, spot=False)
    assert len(calls) == 3
    found = look(now=NOON + 86_400, spot=False)
    assert calls[3:] == ["list_price"]
    assert found.date == "2026-09-22"


def test_the_date_is_that_of_the_oldest_answer(cloud: SandboxCloud) -> None:
    look(spot=False)
    found = look("g5.xlarge", "g6.xlarge", spot=False, now=NOON + 50_000)
    assert found.instance("g6.xlarge").origin[0].startswith("List prices of 2026-09-21")


def test_a_failure_is_not_repeated_for_ten_minutes(cloud: SandboxCloud, calls: list[str]) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": ["pricing:GetProducts"]})
    for seconds in (0, 300, 599):
        assert "is not allowed" in look(spot=False, now=NOON + seconds).describe()
    assert calls == ["list_price"]
    cloud.settings.faults.clear()
    assert not look(spot=False, now=NOON + 600).gaps
    assert len(calls) == 2


def test_another_account_or_region_has_a_cache_of_its_own(cloud: SandboxCloud, tmp_path: Path) -> None:
    look()
    prices_for(demo_spec(aws__region="eu-west-1"), ["g5.xlarge"], now=lambda: NOON)
    assert len(list((tmp_path / "cache").glob("*.json"))) == 2


def test_a_cache_that_cannot_be_read_or_written_costs_a_question_only(
    cloud: SandboxCloud, tmp_path: Path, calls: list[str]
) -> None:
    look(spot=False)
    [path] = (tmp_path / "cache").glob("*.json")
    for content in ("", "[]", '{"listed": {"g5.xlarge": 1}}'):
        path.write_text(content)
        assert look(spot=False).instance("g5.xlarge").usd == 1.006
    assert len(calls) == 4
    (tmp_path / "file").write_text("")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path / "file" / "cache"))
        assert look(spot=False).instance("g5.xlarge").usd == 1.006


@pytest.mark.parametrize(
    ("region", "said"),
    [
        ("us-gov-west-1", "AWS has no Price List API for us-gov-west-1"),
        ("cn-north-1", "in China in CNY"),
        ("mars-north-1", "AWS has no Price List API for mars-north-1"),
    ],
)
def test_where_there_is_no_price_list_that_is_said(cloud: SandboxCloud, region: str, said: str) -> None:
    prices = prices_for(demo_spec(aws__region=region), ["g4dn.xlarge"], now=lambda: NOON)
    assert said in prices.describe(prices.instance("g4dn.xlarge"))
    known = region == "us-gov-west-1"
    assert (prices.instance("g4dn.xlarge").usd is not None) == known


def test_a_region_that_only_the_dated_file_knows_is_priced_by_it(cloud: SandboxCloud) -> None:
    cloud.settings.faults.set("aws-denied", {"actions": ["pricing:GetProducts"]})
    prices = prices_for(demo_spec(aws__region="eu-west-1"), ["g5.xlarge"], now=lambda: NOON)
    price = prices.instance("g5.xlarge")
    assert price.usd is not None
    assert price.origin[0].startswith("List prices of 2026-01-21 for eu-west-1: the price file of gpu-fleet")


def test_prices_of_a_contract_come_before_aws(
    cloud: SandboxCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INCLUDE_DIR_VARIABLE, str(tmp_path / "include"))
    (tmp_path / "include" / "prices").mkdir(parents=True)
    text = "{region: us-west-2, date: '2026-09-01', source: our contract, hourly: {g5.xlarge: 0.5}}"
    path = tmp_path / "include" / "prices" / "ec2-us-west-2.yaml"
    path.write_text(text.replace("hourly", "fixed: true, hourly"))
    prices = look("g5.xlarge", "g6.xlarge", spot=False)
    assert prices.instance("g5.xlarge").origin == ("List prices of 2026-09-01 for us-west-2: our contract",)
    assert "AWS Price List API" in prices.instance("g6.xlarge").origin[0]


def test_too_slow_an_answer_ends_the_questions(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch, calls: list[str]
) -> None:
    monkeypatch.setattr(module, "BUDGET_S", -1.0)
    prices = look(spot=False)
    assert calls == []
    assert "too slow" in prices.describe()
    assert prices.instance("g5.xlarge").usd == 1.006


def test_the_questions_are_bounded(cloud: SandboxCloud, calls: list[str]) -> None:
    prices = look(*(f"x{number}.xlarge" for number in range(40)), spot=False)
    assert len(calls) == 30
    assert "AWS was asked for 30 of 40 instance types only" in prices.describe()


def test_nothing_is_asked_where_that_is_switched_off_or_there_is_nothing_to_price(
    cloud: SandboxCloud, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    prices_of_instances(demo_spec(), [])
    monkeypatch.setenv(LIVE_VARIABLE, "OFF")
    assert look().instance("g5.xlarge").usd == 1.006
    assert calls == []


def test_a_connection_that_does_not_work_is_a_gap_not_a_failure(
    cloud: SandboxCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_connections(monkeypatch)
    monkeypatch.delenv("AIRFLOW_CONN_AWS_DEMO")
    forget_sessions()
    prices = look()
    assert prices.instance("g5.xlarge").usd == 1.006
    assert len(prices.gaps) == 2


def test_instances_and_nodes_are_priced_as_what_they_are(cloud: SandboxCloud) -> None:
    spec = demo_spec()
    on_demand = [{"InstanceType": "g5.xlarge"}]
    assert prices_of_instances(spec, on_demand).spot is None
    assert prices_of_instances(spec, [*on_demand, {"InstanceType": "g6.xlarge", "InstanceLifecycle": "spot"}]).spot
    node = OurNode("n", "u", "i", Owner.KARPENTER, "p", instance_type="g5.xlarge", zone="us-west-2a", spot=True)
    prices = prices_of_nodes(spec, [node])
    assert prices.instance(node.instance_type, node.capacity_type, node.zone).usd == pytest.approx(
        1.006 * 0.4, rel=1e-3
    )
    assert time.strftime("%Y-%m-%d", time.gmtime()) in prices.describe()
