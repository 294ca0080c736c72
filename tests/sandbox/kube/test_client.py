"""The client against the simulated API server: identities, preconditions, events."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from sandbox.apiserver import serve
from sandbox.apiserver.access.auth import User
from sandbox.kube.client import Kube
from sandbox.kube.resources import ApiError
from sandbox.pki import Pki
from sandbox.settings import Settings
from tests.sandbox.controllers import builders


async def _known_token(token: str) -> User | None:
    return User("robot", ("system:masters",)) if token == "right" else None


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[tuple[Pki, str, Path]]:
    pki = Pki(tmp_path / "pki")
    running = await serve(Settings(state_dir=tmp_path), pki, _known_token)
    yield pki, running.url, tmp_path
    await running.close()


@pytest.fixture
async def kube(server: tuple[Pki, str, Path]) -> AsyncIterator[Kube]:
    pki, url, folder = server
    client = Kube.from_kubeconfig(pki.write_kubeconfig(folder / "admin", url), user_agent="test")
    yield client
    await client.close()


@pytest.mark.parametrize(("token", "code"), [("right", 200), ("wrong", 401)])
async def test_bearer_token(server: tuple[Pki, str, Path], token: str, code: int) -> None:
    pki, url, folder = server
    client = Kube.from_kubeconfig(pki.write_kubeconfig(folder / "token", url, token=token), user_agent="test")
    try:
        if code == 200:
            assert await client.list("Node") == []
        else:
            with pytest.raises(ApiError) as refused:
                await client.list("Node")
            assert (refused.value.code, refused.value.reason) == (401, "Unauthorized")
    finally:
        await client.close()


async def test_a_clone_is_the_same_identity(kube: Kube) -> None:
    other = kube.clone("another part")
    assert await other.list("Node") == []
    assert other.user_agent == "another part"
    await other.close()


async def test_preconditions(kube: Kube) -> None:
    created = await kube.create(builders.plain("ConfigMap", "c", data={"a": "1"}))
    await kube.patch("ConfigMap", "c", {"data": {"a": "2"}}, "default")
    with pytest.raises(ApiError) as stale:
        await kube.update(created)
    assert stale.value.conflict
    assert await kube.delete("ConfigMap", "c", "default", uid="another") is False
    assert await kube.delete("ConfigMap", "c", "default", uid=created["metadata"]["uid"]) is True
    assert await kube.find("ConfigMap", "c", "default") is None


async def test_create_twice(kube: Kube) -> None:
    await kube.create(builders.plain("ConfigMap", "c"))
    with pytest.raises(ApiError) as twice:
        await kube.create(builders.plain("ConfigMap", "c"))
    assert twice.value.already_exists
    assert not twice.value.conflict


async def test_apply_takes_over_only_by_force(kube: Kube) -> None:
    await kube.apply(builders.plain("ConfigMap", "c", data={"a": "1"}), field_manager="one")
    theirs = builders.plain("ConfigMap", "c", data={"a": "2"})
    with pytest.raises(ApiError, match='conflict with "one"'):
        await kube.apply(theirs, field_manager="two", force=False)
    assert (await kube.apply(theirs, field_manager="two"))["data"] == {"a": "2"}


async def test_the_same_event_again_is_counted(kube: Kube) -> None:
    config = await kube.create(builders.plain("ConfigMap", "c"))
    for _ in range(3):
        await kube.post_event(config, "Seen", "It was seen.", component="tester")
    await kube.post_event(config, "Seen", "It was seen again.", component="tester", type="Warning")
    events = await kube.list("Event", "default", field_selector="involvedObject.name=c")
    assert sorted((each["message"], each["count"], each["type"]) for each in events) == [
        ("It was seen again.", 1, "Warning"),
        ("It was seen.", 3, "Normal"),
    ]


async def test_an_event_that_cannot_be_written_is_dropped(kube: Kube) -> None:
    lost = builders.seen(builders.plain("ConfigMap", "c", "no-such-namespace"))
    await kube.post_event(lost, "Seen", "It was seen.", component="tester")
    assert await kube.list("Event") == []
