from __future__ import annotations

import pytest

from sandbox.kube.quantities import fits, parse, pod_requests, render, render_all


@pytest.mark.parametrize(
    ("text", "thousandths"),
    [
        ("250m", 250),
        ("2", 2000),
        ("1.5", 1500),
        ("1Ki", 1_024_000),
        ("1G", 10**12),
        ("1e3", 10**6),
        (4, 4000),
        ("0", 0),
    ],
)
def test_spellings_of_a_quantity(text, thousandths):
    assert parse(text) == thousandths


def test_a_fraction_of_a_thousandth_is_rounded_up():
    assert parse("1n") == 1


@pytest.mark.parametrize("text", ["", "abc", "1Xi", "--1"])
def test_no_quantity(text):
    with pytest.raises(ValueError, match="is not a quantity"):
        parse(text)


@pytest.mark.parametrize(
    ("resource", "text"), [("cpu", "3920m"), ("cpu", "4"), ("memory", "15348Mi"), ("memory", "7Ki"), ("pods", "58")]
)
def test_rendered_as_it_was_read(resource, text):
    assert render(resource, parse(text)) == text


def test_a_pod_asks_for_its_containers_together_and_one_slot():
    containers = [
        {"name": "a", "resources": {"requests": {"cpu": "100m"}}},
        {"name": "b", "resources": {"limits": {"cpu": "200m", "nvidia.com/gpu": "1"}}},
    ]
    assert render_all(pod_requests({"spec": {"containers": containers}})) == {
        "cpu": "300m",
        "nvidia.com/gpu": "1",
        "pods": "1",
    }


def test_an_init_container_counts_only_when_it_is_larger_and_a_sidecar_always():
    def container(cpu, **more):
        return {"name": cpu, "resources": {"requests": {"cpu": cpu}}, **more}

    spec = {
        "containers": [container("100m")],
        "initContainers": [container("50m", restartPolicy="Always"), container("300m")],
    }
    assert pod_requests({"spec": spec})["cpu"] == 350


def test_a_missing_resource_counts_as_none():
    assert not fits({"nvidia.com/gpu": 1000}, {"cpu": 4000})
    assert fits({"nvidia.com/gpu": 0}, {"cpu": 4000})
