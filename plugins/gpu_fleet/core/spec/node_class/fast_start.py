"""What ``fastStart`` does to a pool: where its images lie, and how they are pulled. Pure.

Read in:

- awslabs/amazon-eks-ami v20260714 nodeadm/doc/examples.md ('Enabling fast image pull'): at least 2xlarge, and a root
  volume of at least 600 MiB/s, below which pulls may take longer; up to 1,000 MiB/s and 16k IOPS may be better.
  nodeadm/internal/containerd/config.go (UseSOCISnapshotter) ignores the gate below 4 vCPUs or 7 GiB without a word, so
  an xlarge obeys it although it is smaller than what is recommended: this package leaves the gate out there.
- CHANGELOG.md of the same: the gate exists since v20250813; with RAID0, SOCI's folder is on the instance store since
  v20251217 (before that it stayed on the root volume).
- bottlerocket-os/bottlerocket v1.44.0 (release notes): soci-snapshotter, which pulls and unpacks in parallel. A change
  of the snapshotter removes the images below /var/lib/containerd (settings.container-runtime.snapshotter), so it is
  never set for a data volume of a snapshot.
- aws/karpenter-provider-aws v1.14 website/content/en/v1.14/concepts/nodeclasses.md (instanceStorePolicy): on
  Bottlerocket since v1.22.0.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from gpu_fleet.core.spec.instances import has_instance_store, vcpus
from gpu_fleet.core.spec.node_class.ami import Family
from gpu_fleet.core.spec.node_class.fields import NodeClass
from gpu_fleet.core.spec.node_class.volume import GP3_THROUGHPUT, Volume
from gpu_fleet.core.spec.types.names import version_tuple

#: MiB/s of the volume below which parallel pulls may take longer than ordinary ones.
LEAST_THROUGHPUT = 600
#: vCPUs of a 2xlarge.
LEAST_VCPUS = 8
#: First AL2023 release with the gate FastImagePull, and first with SOCI's folder on the instance store.
FIRST_GATE, FIRST_GATE_ON_RAID = "v20250813", "v20251217"
#: First Bottlerocket with soci-snapshotter on Kubernetes variants, and with instance store for images.
FIRST_SOCI, FIRST_RAID = "1.44.0", "1.22.0"


@dataclass(frozen=True)
class FastStart:
    """
    :ivar raid: images are on the instance's NVMe disks.
    :ivar volume: the volume with images (or with the operating system alone, with RAID0); ``None``: the default.
    :ivar parallel: images are pulled and unpacked in parallel.
    :ivar done: what it does, in words.
    :ivar left_out: what it does not do, and why.
    """

    raid: bool
    volume: Volume | None
    parallel: bool
    done: tuple[str, ...] = field(default=())
    left_out: tuple[str, ...] = field(default=())


def fast_start(node_class: NodeClass, instance_types: Iterable[str]) -> FastStart:
    """How nodes of these types get their images; without ``fastStart`` as the other fields say."""
    types, volume = tuple(instance_types), node_class.volume
    asked = node_class.instance_store_policy
    if not node_class.fast_start:
        return FastStart(asked == "RAID0", volume, False)
    done: list[str] = []
    left_out: list[str] = []
    raid = _raid(node_class, types, done, left_out)
    if not raid and (volume is None or (volume.type == "gp3" and volume.throughput is None)):
        volume = (volume or Volume()).model_copy(update={"throughput": LEAST_THROUGHPUT})
        done.append(f"images are on a gp3 volume of {LEAST_THROUGHPUT} MiB/s instead of {GP3_THROUGHPUT}")
    parallel = _parallel(node_class, types, raid=raid, volume=volume, done=done, left_out=left_out)
    return FastStart(raid, volume, parallel, tuple(done), tuple(left_out))


def _raid(node_class: NodeClass, types: tuple[str, ...], done: list[str], left_out: list[str]) -> bool:
    if node_class.instance_store_policy is not None:
        return node_class.instance_store_policy == "RAID0"
    if node_class.volume is not None and node_class.volume.snapshot is not None:
        left_out.append("images stay on the volume: RAID0 would hide those of volume.snapshot")
        return False
    without = [name for name in types if has_instance_store(name) is False]
    unknown = [name for name in types if has_instance_store(name) is None]
    if without or unknown:
        why = f"{', '.join(without)} has none" if without else f"it is not known whether {', '.join(unknown)} has some"
        left_out.append(f"no RAID0 of NVMe disks: {why}")
        return False
    if node_class.family is Family.BOTTLEROCKET and older(node_class.version, FIRST_RAID):
        left_out.append(f"no RAID0 of NVMe disks: Bottlerocket has it since {FIRST_RAID}")
        return False
    done.append("images are on the instance's NVMe disks (RAID0)")
    return True


def _parallel(
    node_class: NodeClass,
    types: tuple[str, ...],
    *,
    raid: bool,
    volume: Volume | None,
    done: list[str],
    left_out: list[str],
) -> bool:
    """Whether images are pulled and unpacked in parallel."""
    small = [name for name in types if not large_enough(name)]
    al2023 = node_class.family is Family.AL2023
    name = "FastImagePull" if al2023 else "the SOCI snapshotter"
    why = ""
    if small:
        verb = "is" if len(small) == 1 else "are"
        why = f"{', '.join(small)} {verb} smaller than 2xlarge; list only larger types"
    elif not raid and volume is not None and (volume.type != "gp3" or (volume.throughput or 0) < LEAST_THROUGHPUT):
        why = f"volume.throughput is below {LEAST_THROUGHPUT} MiB/s"
    elif al2023 and older(node_class.version, FIRST_GATE_ON_RAID if raid else FIRST_GATE):
        why = f"the AMI has it since {FIRST_GATE_ON_RAID if raid else FIRST_GATE}{' with RAID0' if raid else ''}"
    elif not al2023 and older(node_class.version, FIRST_SOCI):
        why = f"Bottlerocket has it since {FIRST_SOCI}"
    elif not al2023 and volume is not None and volume.snapshot is not None:
        why = "another snapshotter would remove the images of volume.snapshot"
    if why:
        left_out.append(f"no {name}: {why}")
        return False
    done.append(f"images are pulled and unpacked in parallel ({name})")
    return True


def large_enough(instance_type: str) -> bool:
    """Whether a type is at least a 2xlarge; metal is."""
    count = vcpus(instance_type)
    return count >= LEAST_VCPUS if count is not None else instance_type.partition(".")[2].startswith("metal")


def older(version: str, first: str) -> bool:
    """Whether a release is known to be older than another: AL2023's are dates, Bottlerocket's are numbers. Of a text
    that is neither, nothing is known.
    """
    if re.fullmatch(r"v[0-9]{8}", first):
        return bool(re.fullmatch(r"v[0-9]{8}", version)) and version < first
    plain = version.removeprefix("v").partition("-")[0]
    return bool(re.fullmatch(r"[0-9]+(\.[0-9]+){1,2}", plain)) and version_tuple(plain) < version_tuple(first)
