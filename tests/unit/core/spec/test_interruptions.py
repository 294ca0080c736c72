"""What a cluster file says about interruptions."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.spec import SpecErrors
from tests.unit.core.specs import demo_spec


@pytest.mark.parametrize(
    ("changes", "handler"),
    [
        ({}, "karpenter"),
        ({"karpenter__interruptionQueue": None}, "gpu-fleet"),
        ({"karpenter__interruptionQueue": ..., "karpenter__manage": False}, "gpu-fleet"),
        (
            {
                "karpenter__interruptionQueue": ...,
                "karpenter__manage": False,
                "interruptions__handler": "karpenter",
            },
            "karpenter",
        ),
    ],
)
def test_karpenter_handles_its_nodes_where_it_has_a_queue(changes: dict[str, Any], handler: str) -> None:
    assert demo_spec(**changes).interruption_handler == handler


def test_without_a_queue_no_message_is_read() -> None:
    assert demo_spec(interruptions=...).interruptions.queue is None


@pytest.mark.parametrize(
    ("changes", "field", "remedy"),
    [
        ({"interruptions__queue": ""}, "interruptions.queue", "null to read no messages"),
        (
            {"interruptions__queue": "arn:aws:sqs:us-west-2:1:mine"},
            "interruptions.queue",
            "write the queue's name, mine",
        ),
        ({"interruptions__margin": "2m"}, "interruptions.margin", "10s"),
        ({"interruptions__maintenance": {"schedule": "soon"}}, "interruptions.maintenance.schedule", "five fields"),
        (
            {"interruptions__maintenance": {"schedule": "@daily", "duration": "0s"}},
            "interruptions.maintenance.duration",
            "2h",
        ),
        ({"interruptions__nodeGroups": ["a", "a"]}, "interruptions", "remove one"),
        ({"interruptions__nodeGroups": ["a b"]}, "interruptions.nodeGroups[0]", "letters"),
        ({"interruptions__rebalance": "evict"}, "interruptions.rebalance", "replace"),
    ],
)
def test_a_wrong_value_is_refused_with_its_remedy(changes: dict[str, Any], field: str, remedy: str) -> None:
    with pytest.raises(SpecErrors) as caught:
        demo_spec(**changes)
    (problem,) = caught.value.problems
    assert problem.field == field
    assert remedy in f"{problem.message} {problem.remedy}"
