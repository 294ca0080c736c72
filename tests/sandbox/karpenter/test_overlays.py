"""NodeOverlays as core v1.14.1 has them (kubernetes-sigs/karpenter ``pkg/controllers/nodeoverlay``); pure."""

from __future__ import annotations

import pytest

from sandbox.karpenter.controllers.overlays import APPLIED, Store, Unevaluated, by_weight, evaluate, gate, selects
from sandbox.karpenter.controllers.provisioner import manifest
from tests.sandbox.karpenter.test_simulation import G5, P4D, _NoClasses, _plan, _pod, _template, _types
from tests.sandbox.nodes.cluster import karpenter_deployment, node_pool

POOL = {"key": "karpenter.sh/nodepool", "operator": "In", "values": ["gpu"]}
TYPE = {"key": "node.kubernetes.io/instance-type", "operator": "In", "values": ["g5.xlarge"]}


def overlay(name="o", *requirements, gpus="4", weight=None):
    spec = {"requirements": list(requirements) or [POOL], "capacity": {"nvidia.com/gpu": gpus}}
    return {"metadata": {"name": name}, "spec": spec | ({"weight": weight} if weight else {})}


def evaluated(*overlays, pools=(("gpu", G5),)):
    return evaluate(overlays, [(node_pool(name, shape.name), _types(shape)) for name, shape in pools])


def overlaid(*overlays, shape=G5):
    template = _template(shape)
    store, _ = evaluate(overlays, [(template.pool, template.types)])
    return type(template)(
        **{**vars(template), "types": store.apply("gpu", template.types)},
    )


def test_eight_shares_buy_two_nodes_with_an_overlay_and_eight_without():
    pods = [_pod(str(number)) for number in range(8)]
    assert len(_plan(pods, _template(G5)).new) == 8
    assert [len(each.pods) for each in _plan(pods, overlaid(overlay())).new] == [4, 4]


def test_the_claim_says_that_an_overlay_was_applied():
    """``pkg/controllers/provisioning/scheduling/nodeclaimtemplate.go``, ``ToNodeClaim``."""
    claim = manifest(_plan([_pod()], overlaid(overlay())).new[0], _NoClasses())
    assert claim["metadata"]["annotations"][APPLIED] == "true"
    plain = manifest(_plan([_pod()], _template(G5)).new[0], _NoClasses())
    assert APPLIED not in plain["metadata"]["annotations"]


def test_capacity_and_allocatable_are_both_overwritten():
    [offered] = overlaid(overlay()).types
    assert (offered.capacity["nvidia.com/gpu"], offered.allocatable["nvidia.com/gpu"]) == (4000, 4000)
    assert offered.capacity["cpu"] == 4000


@pytest.mark.parametrize(
    ("requirements", "selected"),
    [
        ([POOL], True),
        ([POOL, TYPE], True),
        ([TYPE], True),
        ([{**POOL, "values": ["other"]}], False),
        ([{**TYPE, "values": ["p4d.24xlarge"]}], False),
        ([{"key": "nvidia.com/gpu.present", "operator": "In", "values": ["true"]}], True),
        ([{"key": "team", "operator": "In", "values": ["a"]}], False),
        ([{"key": "team", "operator": "DoesNotExist"}], True),
        ([{"key": "karpenter.k8s.aws/instance-gpu-count", "operator": "Gt", "values": ["0"]}], True),
        ([{"key": "karpenter.sh/capacity-type", "operator": "In", "values": ["reserved"]}], False),
    ],
)
def test_what_an_overlay_selects(requirements, selected):
    [offered] = _types(G5)
    assert selects(overlay("o", *requirements), node_pool("gpu"), offered) is selected


def test_an_overlay_of_one_pool_leaves_others_alone():
    store, verdicts = evaluated(overlay(), pools=(("gpu", G5), ("other", G5)))
    assert verdicts == {"o": None}
    assert store.apply("other", _types(G5))[0].capacity["nvidia.com/gpu"] == 1000


def test_the_heaviest_comes_first_and_of_equal_ones_the_last_name():
    listed = [overlay("a"), overlay("c"), overlay("b", weight=2)]
    assert [each["metadata"]["name"] for each in by_weight(listed)] == ["b", "c", "a"]


def test_equal_weights_conflict_and_the_last_name_wins():
    store, verdicts = evaluated(overlay("a", gpus="8"), overlay("b", gpus="4"))
    assert verdicts == {"b": None, "a": ("Conflict", "conflict with another overlay")}
    assert store.apply("gpu", _types(G5))[0].capacity["nvidia.com/gpu"] == 4000


def test_the_heavier_overlay_wins_without_a_word():
    store, verdicts = evaluated(overlay("a", gpus="8", weight=7), overlay("b", gpus="4"))
    assert verdicts == {"a": None, "b": None}
    assert store.apply("gpu", _types(G5))[0].capacity["nvidia.com/gpu"] == 8000


def test_a_conflict_in_one_pool_keeps_an_overlay_from_all():
    wide = overlay("a", TYPE, gpus="8")
    store, verdicts = evaluated(wide, overlay("b"), pools=(("gpu", G5), ("other", G5)))
    assert verdicts["a"] == ("Conflict", "conflict with another overlay")
    assert store.apply("other", _types(G5))[0].capacity["nvidia.com/gpu"] == 1000


def test_overlays_of_different_resources_add_up():
    other = overlay("a")
    other["spec"]["capacity"] = {"example.com/dongle": "1"}
    store, verdicts = evaluated(other, overlay("b"))
    assert verdicts == {"a": None, "b": None}
    assert store.apply("gpu", _types(G5))[0].capacity["example.com/dongle"] == 1000


def test_a_restricted_label_is_refused_at_run_time():
    _, verdicts = evaluated(overlay("o", {"key": "kubernetes.io/hostname", "operator": "Exists"}))
    reason, message = verdicts["o"]
    assert reason == "RuntimeValidation"
    assert message.startswith("invalid value: using label kubernetes.io/hostname is not allowed")


def test_the_nodepool_label_is_no_restricted_one():
    """``karpenter.sh/nodepool`` is well known (``pkg/apis/v1/labels.go``), and the overlay's own CEL rules name no
    domain, unlike a NodePool's."""
    assert evaluated(overlay())[1] == {"o": None}


def test_a_pool_that_was_not_looked_at_gets_nothing_planned():
    """``provisioner.go``: 'skipping, awaiting nodeoverlay evaluation'."""
    with pytest.raises(Unevaluated):
        Store().apply("gpu", _types(P4D))


@pytest.mark.parametrize(
    ("value", "on"),
    [
        (None, False),
        ("ReservedCapacity=true,NodeOverlay=false", False),
        ("ReservedCapacity=true,NodeOverlay=true,CapacityBuffer=false", True),
        ("NodeOverlay=", False),
    ],
)
def test_the_gate_is_read_from_the_controllers_environment(value, on):
    pod = {"spec": karpenter_deployment("demo-gpu")["spec"]["template"]["spec"]}
    if value is not None:
        pod["spec"]["containers"][0]["env"].append({"name": "FEATURE_GATES", "value": value})
    assert gate(pod, "NodeOverlay") is on
