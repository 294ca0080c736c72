"""Where nodes are placed and how they are attached: subnets, security groups, interfaces, placement group, metadata.

Read in aws/karpenter-provider-aws v1.14.1 pkg/apis/v1/ec2nodeclass.go.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from gpu_fleet.core.spec.base import Pattern, SpecModel
from gpu_fleet.core.spec.types.selecting import SelectingTags


def _subnet(value: str) -> str:
    return f"{value!r} is not the id of a subnet; write for example subnet-0123456789abcdef0"


def _group(value: str) -> str:
    return f"{value!r} is not the id of a security group; write for example sg-0123456789abcdef0, or name: {value}"


def _placement(value: str) -> str:
    return f"{value!r} is not the id of a placement group; write for example pg-0123456789abcdef0, or name: {value}"


class SubnetTerm(SpecModel):
    """Subnets by id, or by tags (all of them). Several terms add up."""

    id: Annotated[str, Pattern(r"subnet-[0-9a-z]+", _subnet)] | None = Field(default=None, description="Subnet id.")
    tags: SelectingTags = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> SubnetTerm:
        if (self.id is None) == (not self.tags):
            raise ValueError("needs either id or tags; give one of them")
        return self

    def to_manifest(self) -> dict[str, Any]:
        return {"id": self.id} if self.id is not None else {"tags": dict(self.tags)}


class SecurityGroupTerm(SpecModel):
    """Security groups by id, by name or by tags (all of them). Several terms add up."""

    id: Annotated[str, Pattern(r"sg-[0-9a-z]+", _group)] | None = Field(default=None, description="Group id.")
    name: str | None = Field(default=None, min_length=1, max_length=255, description="Group name, not its Name tag.")
    tags: SelectingTags = Field(default_factory=dict)

    @model_validator(mode="after")
    def _one_way(self) -> SecurityGroupTerm:
        if [self.id is not None, self.name is not None, bool(self.tags)].count(True) != 1:
            raise ValueError("needs exactly one of id, name and tags; give one of them")
        return self

    def to_manifest(self) -> dict[str, Any]:
        if self.id is not None:
            return {"id": self.id}
        return {"name": self.name} if self.name is not None else {"tags": dict(self.tags)}


class NetworkInterface(SpecModel):
    """A network interface that every node gets."""

    network_card_index: int = Field(ge=0, le=63, description="Network card; 0 is the first.")
    device_index: int = Field(ge=0, le=63, description="Place on that card; 0 on card 0 is the primary interface.")
    interface_type: Literal["interface", "efa-only"] = Field(
        description="`interface`: an ENA with an IP address; `efa-only`: EFA without one."
    )

    @field_validator("interface_type", mode="before")
    @classmethod
    def _known(cls, value: Any) -> Any:
        if value == "efa":
            raise ValueError(
                "'efa', an interface with both ENA and EFA, is not supported in an EC2NodeClass of Karpenter 1.14; "
                "write efa-only beside an interface, or leave networkInterfaces out: Karpenter attaches EFA by itself "
                "to nodes for pods that request vpc.amazonaws.com/efa"
            )
        return value


def check_interfaces(value: tuple[NetworkInterface, ...]) -> None:
    """
    :raises ValueError: for a list that the EC2NodeClass refuses (its rules on ``networkInterfaces``).
    """
    places = [(each.network_card_index, each.device_index) for each in value]
    if value and not any(
        (each.network_card_index, each.device_index, each.interface_type) == (0, 0, "interface") for each in value
    ):
        raise ValueError(
            "has no primary interface; add {networkCardIndex: 0, deviceIndex: 0, interfaceType: interface}"
        )
    for index, place in enumerate(places):
        if place in places[:index]:
            raise ValueError(f"two interfaces are on card {place[0]}, device {place[1]}; give each its own place")
    cards = [each.network_card_index for each in value if each.interface_type == "efa-only"]
    for card in cards:
        if cards.count(card) > 1:
            raise ValueError(f"network card {card} has two efa-only interfaces; a card takes one")


class PlacementGroup(SpecModel):
    """An existing placement group into which all nodes are launched; the package creates none."""

    name: str | None = Field(default=None, min_length=1, max_length=255, description="Its name.")
    id: Annotated[str, Pattern(r"pg-[0-9a-z]+", _placement)] | None = Field(default=None, description="Its id.")

    @model_validator(mode="after")
    def _one_way(self) -> PlacementGroup:
        if (self.id is None) == (self.name is None):
            raise ValueError("needs exactly one of name and id; give one of them")
        return self

    def to_manifest(self) -> dict[str, Any]:
        return {"id": self.id} if self.id is not None else {"name": self.name}


class MetadataOptions(SpecModel):
    """The instance metadata service (IMDS). The defaults keep pods from using the node's role."""

    http_endpoint: Literal["enabled", "disabled"] = Field(
        default="enabled", description="disabled: nothing on the node sees instance metadata, nodeadm included."
    )
    http_protocol_ipv6: Literal["enabled", "disabled"] = Field(
        default="disabled", alias="httpProtocolIPv6", description="IPv6 endpoint."
    )
    http_put_response_hop_limit: int = Field(
        default=1,
        ge=1,
        le=64,
        description="1: pods cannot use the node's role; 2: pods reach its credentials.",
    )
    http_tokens: Literal["required", "optional"] = Field(
        default="required", description="required: IMDSv2 only; optional also answers requests without a token."
    )

    @field_validator("http_endpoint")
    @classmethod
    def _needed(cls, value: str) -> str:
        if value == "disabled":
            raise ValueError(
                "nodes join with what they read from instance metadata (nodeadm, Bottlerocket), so none would join; "
                "write enabled"
            )
        return value

    def to_manifest(self) -> dict[str, Any]:
        return self.model_dump(mode="json", by_alias=True)
