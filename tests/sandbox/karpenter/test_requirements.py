from __future__ import annotations

import pytest

from sandbox.karpenter.requirements import (
    Incompatible,
    alternatives_of,
    from_entries,
    from_labels,
    requirement,
)


def _entry(key, operator, *values):
    return {"key": key, "operator": operator, "values": list(values)}


@pytest.mark.parametrize(
    ("operator", "values", "allowed", "refused"),
    [
        ("In", ["a", "b"], ["a"], ["c"]),
        ("NotIn", ["a"], ["b"], ["a"]),
        ("Exists", [], ["anything"], []),
        ("DoesNotExist", [], [], ["anything"]),
        ("Gt", ["3"], ["4"], ["3", "x"]),
        ("Gte", ["3"], ["3"], ["2"]),
        ("Lt", ["3"], ["2"], ["3"]),
        ("Lte", ["3"], ["3"], ["4"]),
    ],
)
def test_what_an_operator_allows(operator, values, allowed, refused):
    item = requirement("k", operator, values)
    assert all(item.allows(value) for value in allowed)
    assert not any(item.allows(value) for value in refused)


def test_bounds_narrow_a_list():
    both = requirement("k", "In", ["1", "5", "9"]).intersection(requirement("k", "Gt", ["4"]))
    assert both.values == {"5", "9"}


def test_bounds_that_exclude_each_other_leave_nothing():
    both = requirement("k", "Gt", ["4"]).intersection(requirement("k", "Lt", ["3"]))
    assert both.operator == "DoesNotExist"


def test_old_label_names_are_the_new_ones():
    assert requirement("beta.kubernetes.io/arch", "In", ["amd64"]).key == "kubernetes.io/arch"


def test_values_that_do_not_meet():
    pool = from_labels({"kubernetes.io/hostname": "hostname-placeholder-0001"})
    with pytest.raises(Incompatible) as error:
        pool.check(from_labels({"kubernetes.io/hostname": "ip-10-0-0-1"}))
    assert str(error.value) == (
        "key kubernetes.io/hostname, kubernetes.io/hostname In [ip-10-0-0-1] not in "
        "kubernetes.io/hostname In [hostname-placeholder-0001]"
    )


def test_a_label_that_nobody_defines_is_refused_and_a_well_known_one_is_not():
    pool = from_labels({})
    with pytest.raises(Incompatible, match='label "team" does not have known values'):
        pool.check(from_labels({"team": "a"}))
    pool.check(from_labels({"topology.kubernetes.io/zone": "z"}))
    pool.check(from_entries([_entry("team", "NotIn", "a")]))


def test_each_affinity_term_is_an_alternative_together_with_the_selector():
    terms = [{"matchExpressions": [_entry("a", "Exists")]}, {"matchExpressions": [_entry("b", "Exists")]}]
    required = {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}}
    pod = {"spec": {"nodeSelector": {"c": "1"}, "affinity": {"nodeAffinity": required}}}
    assert [sorted(each) for each in alternatives_of(pod)] == [["a", "c"], ["b", "c"]]


def test_as_entries_of_a_claim():
    found = from_entries([_entry("a", "In", "y", "x"), _entry("n", "Gt", "3"), _entry("e", "Exists")])
    assert found.entries() == [
        {"key": "a", "operator": "In", "values": ["x", "y"]},
        {"key": "e", "operator": "Exists"},
        {"key": "n", "operator": "Gte", "values": ["4"]},
    ]
    assert from_entries(found.entries()) == found
