"""EBS volumes of a node.

Bounds: Amazon EBS User Guide, 'Amazon EBS volume types' (sizes, IOPS, ratios) and the EC2 API's ``EbsBlockDevice``;
what an EC2NodeClass takes: aws/karpenter-provider-aws v1.14.1 pkg/apis/v1/ec2nodeclass.go, ``BlockDevice``.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from gpu_fleet.core.spec.base import Pattern, SpecModel

#: What gp3 has without paying for more: MiB/s and IOPS.
GP3_THROUGHPUT, GP3_IOPS = 125, 3000
#: Highest throughput of gp3 that EC2 takes at a launch (``EbsBlockDevice.Throughput``), in MiB/s.
_MOST_THROUGHPUT = 1000
#: IOPS: least and most by volume type (``EbsBlockDevice.Iops``).
_IOPS = {"gp3": (3000, 16_000), "io1": (100, 64_000), "io2": (100, 256_000)}
#: IOPS that a GiB may have.
_IOPS_PER_GIB = {"gp3": 500, "io1": 50, "io2": 1000}
#: IOPS that a MiB/s of gp3 needs: 0.25 MiB/s per IOPS.
_IOPS_PER_MIBPS = 4


def _snapshot(value: str) -> str:
    return f"{value!r} is not the id of an EBS snapshot; write for example snap-0123456789abcdef0"


def _key(value: str) -> str:
    return f"{value!r} does not name a KMS key; write the key's id, its ARN, an alias (alias/name) or the alias's ARN"


SnapshotId = Annotated[str, Pattern(r"snap-[0-9a-z]+", _snapshot)]
KmsKey = Annotated[
    str,
    Pattern(r"(arn:[\w-]+:kms:[\w-]+:[0-9]{12}:)?((key/)?(mrk-)?[0-9a-f-]{32,40}|alias/[\w/-]{1,250})", _key),
]


class Volume(SpecModel):
    """How a volume is made. Its size is `nodeClass.volumeSize`."""

    type: Literal["gp3", "gp2", "io1", "io2"] = Field(default="gp3", description="EBS volume type.")
    throughput: int | None = Field(
        default=None,
        ge=GP3_THROUGHPUT,
        le=_MOST_THROUGHPUT,
        description="MiB/s of a gp3 volume. null: gp3's own 125 MiB/s, with which an image of 15 to 20 GB takes 4 to 6 "
        "minutes to pull. The instance type's EBS bandwidth is a second limit.",
    )
    iops: int | None = Field(
        default=None,
        ge=100,
        le=256_000,
        description="I/O operations per second; null: 3,000 with gp3. A MiB/s of gp3 needs 4 of them. io1 and io2 need "
        "a value.",
    )
    snapshot: SnapshotId | None = Field(
        default=None,
        description="EBS snapshot that the volume is made of: with Bottlerocket, the data volume of a node that had "
        "pulled the images.",
    )
    initialization_rate: int | None = Field(
        default=None,
        ge=100,
        le=300,
        description="MiB/s at which EC2 loads the snapshot (provisioned rate for volume initialization, charged per "
        "GiB). null: blocks are loaded when they are first read, which makes the first start of an image slow.",
    )
    encrypted: bool = Field(default=True, description="Whether EBS encrypts it; a snapshot decides that itself.")
    kms_key: KmsKey | None = Field(
        default=None, description="KMS key for the encryption: id, ARN or alias; null: the account's default for EBS."
    )

    @model_validator(mode="after")
    def _fits(self) -> Volume:
        if self.throughput is not None and self.type != "gp3":
            raise ValueError(f"throughput is for gp3 alone, not for {self.type}; remove it, or write type: gp3")
        if self.type in ("io1", "io2") and self.iops is None:
            raise ValueError(f"{self.type} has no default IOPS; give iops")
        if self.iops is not None:
            if self.type not in _IOPS:
                raise ValueError(f"iops cannot be set for {self.type}; remove it, or write type: gp3")
            least, most = _IOPS[self.type]
            if not least <= self.iops <= most:
                raise ValueError(f"{self.iops} IOPS are not possible with {self.type}; write {least} to {most}")
        if self.throughput is not None and self.throughput * _IOPS_PER_MIBPS > (needed := self.iops or GP3_IOPS):
            raise ValueError(
                f"{self.throughput} MiB/s need {self.throughput * _IOPS_PER_MIBPS} IOPS, and the volume has {needed}; "
                f"write iops: {self.throughput * _IOPS_PER_MIBPS}"
            )
        if self.kms_key is not None and not self.encrypted:
            raise ValueError("kmsKey has no effect without encryption; write encrypted: true, or remove kmsKey")
        if self.snapshot is not None and (self.kms_key is not None or not self.encrypted):
            raise ValueError(
                "a volume of a snapshot takes over its encryption, and EC2 takes no other at a launch; remove "
                "encrypted and kmsKey, and copy the snapshot with the key that you want"
            )
        if self.initialization_rate is not None and self.snapshot is None:
            raise ValueError("initializationRate is for a volume of a snapshot; give snapshot, or remove it")
        return self

    def too_small(self, gib: int) -> str:
        """Why a volume of that size cannot have these IOPS; empty if it can."""
        if self.iops is None or self.iops <= (self.type == "gp3") * GP3_IOPS:
            return ""
        needed = -(-self.iops // _IOPS_PER_GIB[self.type])
        return f"{self.iops} IOPS need {needed} GiB of {self.type}, and the volume has {gib}" if gib < needed else ""
