from __future__ import annotations

import pytest

from sandbox.nodes.runtime.images import ImageStore, PullError, parse_reference, pull_step, resolve


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("nvidia/cuda:12.8.0-base-ubuntu22.04", "docker.io/nvidia/cuda:12.8.0-base-ubuntu22.04"),
        ("nvcr.io/nvidia/k8s-device-plugin:v0.20.0", "nvcr.io/nvidia/k8s-device-plugin:v0.20.0"),
        ("localhost:5000/a/b:1", "localhost:5000/a/b:1"),
        ("registry.k8s.io/pause@sha256:" + "0" * 64, "registry.k8s.io/pause@sha256:" + "0" * 64),
    ],
)
def test_references_in_full(image, full):
    assert str(parse_reference(image)) == full


@pytest.mark.parametrize(
    "image",
    [
        "nvcr.io/nvidia/k8s-device-plugin:v0.17.0",
        "nvcr.io/nvidia/k8s-device-plugin:v0.20.0",
        "nvcr.io/nvidia/k8s/cuda-sample:vectoradd-cuda12.5.0-ubuntu22.04",
        "nvidia/cuda:12.8.0-base-ubuntu22.04",
        "public.ecr.aws/karpenter/controller:1.14.1",
        "public.ecr.aws/karpenter/controller:1.14.1@sha256:" + "a" * 64,
    ],
)
def test_images_that_exist(image):
    assert resolve(image).megabytes > 0


@pytest.mark.parametrize(
    ("image", "words"),
    [
        ("nvcr.io/nvidia/k8s-device-plugin:v9.9.9", "v9.9.9: not found"),
        ("public.ecr.aws/karpenter/controller:latest", "latest: not found"),
        ("nobody/nothing:1", "pull access denied"),
        ("registry.invalid/a:1", "no such host"),
        ("registry.k8s.io/pause@sha256:zz", "not found"),
    ],
)
def test_images_that_do_not_exist(image, words):
    with pytest.raises(PullError, match=words) as error:
        resolve(image)
    assert str(error.value).startswith("failed to pull and unpack image")


def test_a_node_pulls_an_image_once_under_either_name():
    store = ImageStore()
    store.keep("busybox:1.36", resolve("busybox:1.36"))
    assert store.has("docker.io/library/busybox:1.36")
    assert store.image_id("busybox:1.36").startswith("docker.io/library/busybox@sha256:")


def test_larger_images_take_longer():
    assert pull_step(resolve("registry.k8s.io/pause:3.10")) is None
    assert pull_step(resolve("nvidia/cuda:12.8.0-base-ubuntu22.04")) == "image_pull_small"
    assert pull_step(resolve("nvcr.io/nvidia/k8s/dcgm-exporter:4.4.0-4.5.0-ubuntu22.04")) == "image_pull_medium"
