"""The oracle of 'announced before it happened' (tests/e2e/announced.py): it finds what came too early or untold."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest

from tests.e2e.announced import Announcement, Effect, effects, is_of_teardown, unannounced, unplanned
from tests.e2e.ours import Entry

Json = dict[str, Any]
POOL, NODE, JOB = "shared-a10g", "ip-10-0-0-5", "training/trainer-1"
HELM = {"app.kubernetes.io/managed-by": "Helm", "app.kubernetes.io/instance": "nvidia-device-plugin"}
PLUGIN = "nvidia-device-plugin"


def write(second: int, verb: str, path: str, name: str, body: Any = None, **more: Any) -> Entry:
    """``path``: ``namespace/resource[/subresource]``; without a namespace it begins with a slash."""
    namespace, resource, *rest = path.split("/")
    reference = {"namespace": namespace, "resource": resource, "name": name, "subresource": "".join(rest)}
    raw = {
        "kind": "Event",
        "verb": verb,
        "user": {"username": more.pop("user", "arn:aws:iam::123456789012:user/airflow")},
        "userAgent": more.pop("agent", "gpu-fleet"),
        "objectRef": {key: value for key, value in reference.items() if value},
        "responseStatus": {"code": more.pop("code", 200)},
        "requestReceivedTimestamp": f"2026-01-01T00:00:{second:02d}.000000Z",
        "annotations": {
            "sandbox/object": json.dumps({"labels": more.pop("labels", {})}),
            **more.pop("annotations", {}),
        },
    }
    return Entry(raw | ({} if body is None else {"requestObject": body}))


def pool(replicas: int, nodes: str = "4", types: str = "g5.xlarge") -> Json:
    labels = {"nvidia.com/device-plugin.config": f"time-slicing-{replicas}"}
    requirements = [{"key": "node.kubernetes.io/instance-type", "operator": "In", "values": [types]}]
    template = {"metadata": {"labels": labels}, "spec": {"expireAfter": "Never", "requirements": requirements}}
    return {"kind": "NodePool", "spec": {"template": template, "limits": {"nodes": nodes}}}


def overlay(replicas: int) -> Json:
    return {"kind": "NodeOverlay", "spec": {"capacity": {"nvidia.com/gpu": str(replicas)}}}


def upgrade(second: int, revision: int) -> list[Entry]:
    """What helm writes."""
    secret = f"sh.helm.release.v1.{PLUGIN}.v{revision}"
    return [
        write(second, "create", f"{PLUGIN}/secrets", secret, agent="Helm/4.2.3"),
        write(second, "patch", f"{PLUGIN}/configmaps", f"{PLUGIN}-configs", agent="Helm/4.2.3", labels=HELM),
        write(second, "update", f"{PLUGIN}/secrets", secret, agent="Helm/4.2.3"),
    ]


def applied(second: int, replicas: int) -> list[Entry]:
    return [
        write(second, "patch", "/nodeoverlays", f"gpu-fleet-{POOL}", overlay(replicas)),
        write(second + 1, "patch", "/nodepools", POOL, pool(replicas)),
    ]


#: An earlier run at 1 to 5, the change from 4 to 8 at 10 to 19.
LOG = [*upgrade(2, 1), *applied(3, 4), *upgrade(14, 2), *applied(15, 8)]
BEGAN = 1767225600.0  # 2026-01-01T00:00:00Z
STANDING = {POOL: {NODE: {JOB}}}
SENTENCE = (
    f"this changes the template of pool {POOL} (sharing changed (time-slicing-4 -> time-slicing-8)): 1 node will "
    f"drift, 1 of them holds pods with GPUs ({JOB})"
)
CHANGE = {
    "pool": POOL,
    "changes": [{"field": "sharing", "was": "time-slicing-4", "now": "time-slicing-8"}],
    "drifting": [{"node": NODE, "pods": [JOB]}],
}


def of_the_change(log: list[Entry] = LOG) -> list[Effect]:
    return effects(log, BEGAN + 10, BEGAN + 20)


def told(at: float = 12, change: Json | None = None, log: str = SENTENCE, **plan: Any) -> Announcement:
    return Announcement.of(BEGAN + at, {"changes": [CHANGE if change is None else change], "unknown": []} | plan, log)


def test_every_write_that_changes_template_or_sharing_is_an_effect() -> None:
    found = [(each.entry.resource, each.pool, each.what) for each in of_the_change()]
    assert found == [
        ("secrets", POOL, "sharing"),
        ("configmaps", POOL, "sharing"),
        ("nodeoverlays", POOL, "sharing"),
        ("nodepools", POOL, "template"),
    ]


@pytest.mark.parametrize(
    "log",
    [
        pytest.param([*LOG, *(write(18, "patch", "/nodepools", POOL, pool(8)),)], id="applied again"),
        pytest.param([*LOG, write(18, "patch", "/nodepools", POOL, pool(8, nodes="9"))], id="limits"),
        pytest.param([*LOG, write(18, "patch", "/nodepools", POOL, pool(8, types="g6.xlarge"))], id="requirements"),
        pytest.param([*LOG, write(18, "patch", "/nodepools", POOL, {"metadata": {}})], id="metadata"),
        pytest.param(
            [*LOG, write(18, "patch", "/nodepools", POOL, pool(2), annotations={"sandbox/dry-run": "true"})],
            id="dry run",
        ),
        pytest.param([*LOG, write(18, "patch", "/nodepools", POOL, pool(2), code=409)], id="refused"),
        pytest.param(
            [*LOG, write(18, "patch", "/nodepools", POOL, pool(2), user="kubernetes-admin", agent="kubectl/v1.35.2")],
            id="a person's",
        ),
        pytest.param([*LOG, write(25, "patch", "/nodepools", POOL, pool(2))], id="another run's"),
    ],
)
def test_what_changes_no_node_or_is_not_of_the_run_is_none(log: list[Entry]) -> None:
    assert of_the_change(log) == of_the_change()


def test_upgrade_of_the_release_that_changes_no_sharing_is_none() -> None:
    assert effects([*LOG, *upgrade(30, 3)], BEGAN + 29, BEGAN + 40) == []


def test_overlay_that_is_removed_is_an_effect_on_the_sharing() -> None:
    log = [*LOG, write(30, "delete", "/nodeoverlays", f"gpu-fleet-{POOL}")]
    assert [each.what for each in effects(log, BEGAN + 29, BEGAN + 40)] == ["sharing"]


def test_changed_node_class_is_an_effect_on_the_template() -> None:
    classes = [
        write(at, "patch", "/ec2nodeclasses", POOL, {"spec": {"role": role}}) for at, role in ((3, "a"), (15, "b"))
    ]
    assert [(each.entry.resource, each.what) for each in of_the_change(classes)] == [("ec2nodeclasses", "template")]


def test_change_that_was_announced_in_full_is_fine() -> None:
    assert unannounced(of_the_change(), told(), STANDING) == []


def test_pool_without_nodes_needs_the_announcement_to_be_over_and_no_more() -> None:
    nothing = told(changes=[], log="applying the spec makes no node drift")
    assert unannounced(of_the_change(), nothing, {}) == []
    assert len(unannounced(of_the_change(), told(at=19, changes=[]), {})) == 4


def without(change: Json, **fields: Any) -> Json:
    return copy.deepcopy(change) | fields


@pytest.mark.parametrize(
    ("announcement", "effects_told_of", "why"),
    [
        pytest.param(told(at=14.5), 2, "before anything was announced", id="after the release was upgraded"),
        pytest.param(told(at=30), 4, "before anything was announced", id="after everything"),
        pytest.param(told(changes=[]), 4, "does not name the pool", id="pool not named"),
        pytest.param(Announcement.of(BEGAN + 12, None, ""), 4, "does not name the pool", id="no plan at all"),
        pytest.param(
            told(change=without(CHANGE, changes=[{"field": "taints"}])),
            3,  # of the NodePool it is said that its template changes, though for another field
            "does not say that the sharing changes",
            id="another field",
        ),
        pytest.param(
            told(change=without(CHANGE, drifting=[])), 4, f"says that none will drift, and {NODE}", id="node not named"
        ),
        pytest.param(
            told(change=without(CHANGE, drifting=[*CHANGE["drifting"], {"node": "other", "pods": []}])),
            4,
            "will drift",
            id="a node too many",
        ),
        pytest.param(
            told(change=without(CHANGE, drifting=[{"node": NODE, "pods": []}])),
            4,
            f"none hold GPUs of {NODE}, and it was {JOB}",
            id="pod not named",
        ),
        pytest.param(told(log="nothing"), 4, "the log does not say so", id="not in the log"),
        pytest.param(told(log=SENTENCE.replace(JOB, "x/y")), 4, "the log does not say so", id="pod not in the log"),
        pytest.param(
            told(log=SENTENCE.replace("1 node will", "2 nodes will")), 4, "the log does not say so", id="wrong count"
        ),
    ],
)
def test_change_that_came_too_early_or_of_which_too_little_was_said_is_found(
    announcement: Announcement, effects_told_of: int, why: str
) -> None:
    problems = unannounced(of_the_change(), announcement, STANDING)
    assert [problem for problem in problems if why in problem] == problems
    assert len(problems) == effects_told_of


# --- a teardown ------------------------------------------------------------------------------------------------------

APPROVED = {"pools": [POOL], "nodeClaims": [f"{POOL}-x"], "nodes": [NODE], "pods": {JOB: "Deployment training/trainer"}}
PLANNED = [
    write(1, "patch", "/nodepools", POOL, pool(8, nodes="0")),
    write(2, "patch", "/nodes", NODE, {"spec": {"unschedulable": True}}),
    write(3, "create", "training/pods/eviction", "trainer-1"),
    write(4, "delete", "/nodepools", POOL),
    write(5, "delete", "/nodeclaims", f"{POOL}-x"),
]
NOT_PLANNED = [
    write(1, "patch", "/nodepools", "whole-a100", pool(8, nodes="0")),
    write(2, "patch", "/nodes", "ip-10-0-0-9", {"spec": {"unschedulable": True}}),
    write(3, "create", "training/pods/eviction", "trainer-2"),
    write(5, "delete", "/nodeclaims", "whole-a100-y"),
]


def test_teardown_that_does_what_its_plan_names_is_fine() -> None:
    assert unplanned(PLANNED, APPROVED) == []


@pytest.mark.parametrize("one", NOT_PLANNED, ids=str)
def test_what_the_approved_plan_does_not_name_is_found(one: Entry) -> None:
    assert unplanned([*PLANNED, one], APPROVED) == [f"the plan does not name it: {one}"]


@pytest.mark.parametrize(
    ("one", "awaits_approval"),
    [
        *((each, True) for each in PLANNED),
        (write(1, "delete", f"{PLUGIN}/secrets", f"sh.helm.release.v1.{PLUGIN}.v3", agent="Helm/4.2.3"), True),
        (write(1, "delete", f"{PLUGIN}/daemonsets", PLUGIN, agent="Helm/4.2.3"), True),
        (write(1, "delete", "/runtimeclasses", "nvidia"), True),
        (write(1, "delete", "/nodeoverlays", f"gpu-fleet-{POOL}"), True),
        (write(1, "patch", "gpu-fleet-system/configmaps", "turn"), False),
        (write(1, "create", "gpu-fleet-system/pods/eviction", "placeholder-0"), False),
        (write(1, "delete", "/nodepools", POOL, user="kubernetes-admin", agent="kubectl/v1.35.2"), False),
    ],
    ids=str,
)
def test_freeze_cordon_eviction_and_removal_await_the_approval(one: Entry, awaits_approval: bool) -> None:
    assert is_of_teardown(one) is awaits_approval
