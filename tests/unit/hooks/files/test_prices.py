from __future__ import annotations

from pathlib import Path

import pytest

from gpu_fleet.core.errors import SpecError
from gpu_fleet.hooks.files.prices import load_prices
from gpu_fleet.hooks.files.templates import INCLUDE_DIR_VARIABLE
from tests.unit.core.specs import demo_spec


def test_the_demo_pools_have_prices_with_date_and_source() -> None:
    prices = load_prices("us-west-2")
    for pool in demo_spec().node_pools:
        for kind in pool.instance_types:
            assert prices.instance(kind).usd is not None
    assert prices.date
    assert "aws.amazon.com" in prices.source


def test_a_region_without_a_list_has_unknown_prices() -> None:
    assert load_prices("mars-north-1").instance("g5.xlarge").usd is None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "without region"),
        ("a: [", "price list"),
        ("- x", "price list"),
        ("{region: eu-west-1, date: x, source: y, hourly: {a: 1}}", "is for eu-west-1"),
        ("{region: xx-west-1, date: x, source: y, hourly: {a: zero}}", "is not a price"),
    ],
)
def test_a_broken_list_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, said: str) -> None:
    monkeypatch.setenv(INCLUDE_DIR_VARIABLE, str(tmp_path))
    (tmp_path / "prices").mkdir()
    (tmp_path / "prices" / "ec2-xx-west-1.yaml").write_text(content)
    with pytest.raises(SpecError, match=said):
        load_prices("xx-west-1")
