"""What finished runs left on nodes."""

from __future__ import annotations

from typing import Any

import pytest

from gpu_fleet.core.nodes.left_behind import patch_of

ME, OVER = "gpu_lifecycle.demo/now", "gpu_revalidate.demo/killed"
PROTECTED = {"karpenter.sh/do-not-disrupt": "true", "gpu-fleet.io/protected-by": OVER}
CORDONED = {"gpu-fleet.io/cordoned-by": OVER}


def node(annotations: dict[str, str], **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "n", "labels": {"karpenter.sh/nodepool": "old"}, "annotations": annotations, **metadata}
    }


@pytest.mark.parametrize(
    ("annotations", "closed", "annotations_after", "opened"),
    [
        (PROTECTED, (), {"karpenter.sh/do-not-disrupt": None, "gpu-fleet.io/protected-by": None}, False),
        (CORDONED, (), {"gpu-fleet.io/cordoned-by": None}, True),
        (CORDONED, ("other",), {"gpu-fleet.io/cordoned-by": None}, True),
        ({**CORDONED, "gpu-fleet.io/quarantined": "{}"}, (), {"gpu-fleet.io/cordoned-by": None}, False),
        (
            {**CORDONED, **PROTECTED},
            ("old",),
            {"karpenter.sh/do-not-disrupt": None, "gpu-fleet.io/protected-by": None},
            False,
        ),
    ],
    ids=["protection", "cordon", "cordon, another pool is closed", "cordon and quarantine", "the pool is torn down"],
)
def test_what_is_taken_back(
    annotations: dict[str, str], closed: tuple[str, ...], annotations_after: dict[str, None], opened: bool
) -> None:
    body = patch_of(node(annotations), ME, closed)
    assert body is not None
    assert body["metadata"] == {"annotations": annotations_after}
    assert (body.get("spec") == {"unschedulable": None}) is opened


@pytest.mark.parametrize(
    "found",
    [
        node({}),
        node({"karpenter.sh/do-not-disrupt": "true"}),
        node({"karpenter.sh/do-not-disrupt": "true", "gpu-fleet.io/protected-by": ME}),
        node({"gpu-fleet.io/cordoned-by": ME}),
        node({"gpu-fleet.io/cordoned-by": "interruption/6f1c", "gpu-fleet.io/interruption": "{}"}),
        node({**PROTECTED, **CORDONED}, deletionTimestamp="2026-11-01T00:00:00Z"),
    ],
    ids=[
        "nothing",
        "somebody else's",
        "this run's protection",
        "this run's cordon",
        "an interruption's cordon",
        "a node that is going",
    ],
)
def test_what_is_left_alone(found: dict[str, Any]) -> None:
    assert patch_of(found, ME, ()) is None
