"""EC2 tags by which an EC2NodeClass selects subnets, security groups, AMIs and capacity reservations."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from gpu_fleet.core.spec.base import visible

#: Longest key and value of an EC2 tag (Amazon EC2 User Guide, 'Tag restrictions').
LONGEST_TAG_KEY, LONGEST_TAG_VALUE = 128, 256
#: Tags of one selector term (aws/karpenter-provider-aws v1.14.1 pkg/apis/v1/ec2nodeclass.go, ``SubnetSelectorTerm``).
_MOST = 20


def _check(value: dict[str, str]) -> dict[str, str]:
    """
    :raises ValueError: for tags by which an EC2NodeClass cannot select.
    """
    for key, text in value.items():
        visible(key)
        visible(text)
        if not key or not text:
            raise ValueError("has an empty tag key or value; write the value, or '*' for any")
        if len(key) > LONGEST_TAG_KEY or len(text) > LONGEST_TAG_VALUE:
            raise ValueError(f"tag {key[:40]!r} is longer than EC2 takes; shorten it")
    return value


SelectingTags = Annotated[
    dict[str, str],
    Field(max_length=_MOST, description="Tags, all of them; the value `*` stands for any."),
    AfterValidator(_check),
]
