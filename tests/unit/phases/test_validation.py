"""Which probe a pool gets."""

from __future__ import annotations

import pytest

from gpu_fleet.phases.validation import probe_of
from tests.unit.core.specs import demo_spec


@pytest.mark.parametrize(
    ("pool", "switched_off", "probe"),
    [
        ("shared-a10g", {}, "sharing"),
        ("whole-a100", {}, "exclusive"),
        ("shared-a10g", {"sharing": False}, "vectoradd"),
        ("shared-a10g", {"exclusive": False}, "sharing"),
        ("whole-a100", {"exclusive": False}, "vectoradd"),
        ("whole-a100", {"sharing": False}, "exclusive"),
    ],
)
def test_probe_follows_from_the_sharing_and_the_spec(pool: str, switched_off: dict[str, bool], probe: str) -> None:
    spec = demo_spec(validation__probes=switched_off)
    assert probe_of(spec, spec.pool(pool)) == probe
