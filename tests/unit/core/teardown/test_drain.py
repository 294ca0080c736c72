from __future__ import annotations

import pytest

from gpu_fleet.core.teardown.drain import remaining_nodes
from tests.unit.core.specs import demo_spec


@pytest.mark.parametrize(("uninstall", "expected"), [(True, ["gone", "old"]), (False, ["old"])])
def test_nodes_of_pools_that_the_file_no_longer_has_are_left_to_drain(uninstall: bool, expected: list[str]) -> None:
    """Nodes of no pool at all go where Karpenter goes: nobody would be left to remove them."""
    spec = demo_spec(teardown__uninstallKarpenter=uninstall)
    pools = [
        {"metadata": {"name": "old", "labels": {"gpu-fleet.io/cluster": "demo"}}},
        {"metadata": {"name": "shared-a10g"}},
        {"metadata": {"name": "cpu"}},
    ]
    names = ("old", "shared-a10g", "cpu", "gone", "whole-a100")
    nodes = [{"metadata": {"name": name, "labels": {"karpenter.sh/nodepool": name}}} for name in names]
    assert remaining_nodes(spec, nodes, pools, spec.pool_names) == expected
