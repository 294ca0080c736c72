from __future__ import annotations

import pytest

from gpu_fleet.core.teardown.leak_check import SUBJECTS, Unchecked, clean_sentence, costly, unseen_message, words
from gpu_fleet.core.teardown.leaks import aws_queries

WHY = "AWS ec2 describe_volumes: You are not authorized to perform this operation (UnauthorizedOperation)"


def test_of_everything_that_aws_is_asked_it_is_known_whether_it_costs_money() -> None:
    assert set(SUBJECTS) == {query.key for query in aws_queries("demo-gpu")}
    assert {key for key, subject in SUBJECTS.items() if subject.costs} == {
        "instances.owned",
        "instances.claimed",
        "volumes",
    }


@pytest.mark.parametrize("key", sorted(SUBJECTS))
def test_each_subject_says_what_was_not_seen_and_what_to_grant(key: str) -> None:
    text = words([Unchecked(key, WHY)])
    assert SUBJECTS[key].what in text
    assert SUBJECTS[key].action in text


def test_a_check_that_saw_everything_says_that_nothing_is_left() -> None:
    assert clean_sentence("demo-gpu", []) == "nothing is left of cluster demo-gpu's GPU capacity"


def test_a_check_that_missed_what_is_free_does_not_say_that_nothing_is_left() -> None:
    missed = [Unchecked("launch_templates", WHY), Unchecked("launch_templates.old", WHY)]
    assert costly(missed) == []
    sentence = clean_sentence("demo-gpu", missed)
    assert sentence.startswith("nothing that costs money is left")
    assert "launch templates, launch templates of old versions could not be looked at" in sentence
    assert "(grant ec2:DescribeLaunchTemplates)" in sentence


def test_what_may_hide_cost_is_told_with_the_words_of_aws() -> None:
    text = unseen_message("demo-gpu", [Unchecked("volumes", WHY), Unchecked("instance_profiles", "no")])
    assert "is not known: EBS volumes could not be looked at (grant ec2:DescribeVolumes)" in text
    assert text.endswith(f"\n  - EBS volumes: {WHY}")


def test_where_no_grant_helps_the_cure_is_said_instead() -> None:
    text = words([Unchecked("volumes", WHY, "extend the boundary"), Unchecked("launch_templates", WHY)])
    assert text.endswith("(grant ec2:DescribeLaunchTemplates; extend the boundary)")
    assert "grant" not in words([Unchecked("volumes", WHY, "extend the boundary")])
