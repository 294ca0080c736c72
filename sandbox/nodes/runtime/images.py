"""Which images exist, how large they are, and what a node has pulled already.

The catalogue lists the images that the package, the charts and users need. For any other name the pull fails as it does
where a registry does not have the image, so that a wrong tag fails here as it would in a cluster.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field

_MB = 1_000_000


@dataclass(frozen=True)
class Repository:
    """
    :ivar tags: which tags exist, as a regular expression on the whole tag.
    :ivar megabytes: compressed size.
    """

    name: str
    tags: str
    megabytes: int


_SEMVER = r"v?\d+\.\d+(\.\d+)?"
_PLUGIN_TAGS = r"v0\.(1[4-9]|20)\.\d+(-ubi8|-ubi9|-ubuntu22\.04)?"
_PYTHON_TAGS = r"3(\.\d+)*(-slim|-alpine)?(-bullseye|-bookworm|-trixie)?"
CATALOGUE = (
    Repository("nvcr.io/nvidia/k8s-device-plugin", _PLUGIN_TAGS, 210),
    Repository(
        "nvcr.io/nvidia/k8s/cuda-sample", r"(vectoradd|nbody|devicequery)-cuda1[0-3]\.\d+\.\d+(-ubuntu|-ubi).*", 140
    ),
    Repository("nvcr.io/nvidia/cloud-native/dcgm", r"[34]\.\d+\.\d+-\d+-(ubuntu|ubi)\d+(\.\d+)?", 290),
    Repository("nvcr.io/nvidia/k8s/dcgm-exporter", r"\d+\.\d+\.\d+-\d+\.\d+\.\d+-.*", 900),
    Repository(
        "docker.io/nvidia/cuda", r"1[0-3]\.\d+\.\d+-(cudnn\d*-)?(base|runtime|devel)-(ubuntu|ubi|rockylinux).*", 90
    ),
    Repository(
        "nvcr.io/nvidia/cuda", r"1[0-3]\.\d+\.\d+-(cudnn\d*-)?(base|runtime|devel)-(ubuntu|ubi|rockylinux).*", 90
    ),
    Repository("public.ecr.aws/karpenter/controller", r"1\.\d+\.\d+", 60),
    Repository("public.ecr.aws/eks-distro/kubernetes/pause", _SEMVER, 1),
    Repository("public.ecr.aws/eks-distro/coredns/coredns", r"v1\.\d+\.\d+.*", 20),
    Repository("registry.k8s.io/pause", r"3\.\d+(\.\d+)?", 1),
    Repository("registry.k8s.io/nfd/node-feature-discovery", r"v0\.1[4-9]\.\d+(-minimal|-full)?", 90),
    Repository("registry.k8s.io/coredns/coredns", r"v1\.\d+\.\d+", 20),
    Repository("registry.k8s.io/kubectl", r"v1\.\d+\.\d+", 20),
    Repository("registry.k8s.io/e2e-test-images/agnhost", r"2\.\d+(\.\d+)?", 50),
    Repository("docker.io/library/busybox", r"latest|1(\.\d+)*(-glibc|-musl|-uclibc)?", 2),
    Repository("docker.io/library/alpine", r"latest|3(\.\d+)*", 4),
    Repository("docker.io/library/ubuntu", r"latest|2[0-9]\.04", 30),
    Repository("docker.io/library/debian", r"latest|1[0-9](-slim)?|bookworm(-slim)?|trixie(-slim)?", 50),
    Repository("docker.io/library/nginx", r"latest|1\.\d+(\.\d+)?(-alpine)?", 70),
    Repository("docker.io/library/python", _PYTHON_TAGS, 130),
    Repository("public.ecr.aws/docker/library/python", _PYTHON_TAGS, 130),
    Repository("docker.io/bitnami/kubectl", r"latest|1\.\d+(\.\d+)?", 90),
    Repository("docker.io/rancher/kubectl", r"v1\.\d+\.\d+", 20),
    Repository("public.ecr.aws/deep-learning-containers/pytorch-training", r"2\.\d+\.\d+-gpu-.*", 15_000),
    Repository("nvcr.io/nvidia/pytorch", r"2\d\.\d\d-py3", 10_000),
)
_BY_NAME = {repository.name: repository for repository in CATALOGUE}
_REGISTRIES = {repository.name.partition("/")[0] for repository in CATALOGUE}
_MIRROR = re.compile(r"\d{12}\.dkr\.ecr\.[a-z0-9-]+\.amazonaws\.com")
_DIGEST = re.compile(r"^sha256:[0-9a-f]{64}$")


class PullError(Exception):
    """A pull that failed; the message is the container runtime's."""


@dataclass(frozen=True)
class Reference:
    """An image reference in full, as containerd spells it."""

    registry: str
    path: str
    tag: str
    digest: str

    @property
    def repository(self) -> str:
        return f"{self.registry}/{self.path}"

    def __str__(self) -> str:
        return self.repository + (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")


def parse_reference(image: str) -> Reference:
    """``nvidia/cuda:12.8.0-base-ubuntu22.04`` is ``docker.io/nvidia/cuda:…`` (distribution/reference)."""
    rest, _, digest = image.partition("@")
    head, slash, tail = rest.rpartition("/")
    name, _, tag = tail.partition(":")
    path = f"{head}{slash}{name}"
    first, slash, others = path.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost"):
        first, others = "docker.io", path if slash else f"library/{path}"
    return Reference(first, others, tag or ("" if digest else "latest"), digest)


def resolve(image: str) -> Repository:
    """The catalogue's entry for an image.

    :raises PullError: with containerd's words when no registry has it.
    """
    reference = parse_reference(image)
    # A mirror in ECR keeps the host of the original as the first part of the path.
    repository = _BY_NAME.get(reference.path if _MIRROR.fullmatch(reference.registry) else reference.repository)
    failed = f'failed to pull and unpack image "{reference}": failed to resolve reference "{reference}"'
    if reference.registry not in _REGISTRIES and not reference.registry.endswith(".amazonaws.com"):
        host = reference.registry.partition(":")[0]
        request = f'Head "https://{reference.registry}/v2/{reference.path}/manifests/{reference.tag}"'
        raise PullError(f"{failed}: failed to do request: {request}: dial tcp: lookup {host}: no such host")
    if repository is None and reference.registry == "docker.io":
        denied = "pull access denied, repository does not exist or may require authorization"
        raise PullError(f"{failed}: {denied}: server message: insufficient_scope: authorization failed")
    known_tag = repository is not None and (not reference.tag or re.fullmatch(repository.tags, reference.tag))
    known_digest = not reference.digest or _DIGEST.match(reference.digest)
    if repository is None or not known_tag or not known_digest:
        raise PullError(f"{failed}: {reference}: not found")
    return repository


def digest_of(image: str) -> str:
    reference = parse_reference(image)
    return reference.digest or "sha256:" + hashlib.sha256(str(reference).encode()).hexdigest()


@dataclass
class ImageStore:
    """What one node has on its disk."""

    present: dict[str, Repository] = field(default_factory=dict)

    def has(self, image: str) -> bool:
        return str(parse_reference(image)) in self.present

    def keep(self, image: str, repository: Repository) -> None:
        self.present[str(parse_reference(image))] = repository

    def image_id(self, image: str) -> str:
        return f"{parse_reference(image).repository}@{digest_of(image)}"

    def status(self) -> list[dict[str, object]]:
        """``status.images`` of the Node."""
        return [
            {"names": [self.image_id(name), name], "sizeBytes": repository.megabytes * _MB}
            for name, repository in sorted(self.present.items(), key=lambda item: -item[1].megabytes)
        ]


#: From this size on, what a pull takes is computed from the disk instead of being sampled.
LARGE_MB = 2_000
#: MB/s at which containerd unpacks one layer after the other; guess.
_ONE_BY_ONE = 160.0
#: A byte is written twice: as a part of a layer, and unpacked.
_WRITES = 2
#: MiB/s below which pulling in parallel takes longer than pulling one by one (awslabs/amazon-eks-ami v20260714
#: ``nodeadm/doc/examples.md``, 'Enabling fast image pull'); by how much is a guess.
_LEAST_PARALLEL, _LONGER = 600.0, 1.25
_MB_PER_MIB = 1.048576


@dataclass(frozen=True)
class Disk:
    """Where a node keeps its images.

    :ivar mibps: MiB/s that it takes.
    :ivar parallel: layers are pulled and unpacked in parallel (SOCI).
    """

    mibps: float
    parallel: bool = False


def pull_seconds(repository: Repository, disk: Disk) -> float:
    """Simulated seconds of the first pull of a large image.

    With gp3's 125 MiB/s 229 s for 15 GB: published are 240 to 360 s for 15 to 20 GB.
    """
    written, rate = repository.megabytes * _WRITES, disk.mibps * _MB_PER_MIB
    one_by_one = written / min(rate, _ONE_BY_ONE)
    if not disk.parallel:
        return one_by_one
    return written / rate if disk.mibps >= _LEAST_PARALLEL else one_by_one * _LONGER


def pull_step(repository: Repository) -> str | None:
    """The latency step of a first pull; nothing for images that any node has or gets in an instant."""
    if repository.megabytes <= 1:
        return None
    return "image_pull_small" if repository.megabytes < 300 else "image_pull_medium"
