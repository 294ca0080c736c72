"""The images that others publish: each is pinned by a digest whose source is named, or is a known exception."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
COMPOSE = (ROOT / "docker-compose.yaml").read_text()
SANDBOX = (ROOT / "docker-compose.sandbox.yaml").read_text()

#: Images that are pinned by tag alone; docs/guides/deploy.md says so, and how they are pinned.
BY_TAG = {"apache/airflow:3.3.2-python3.11"}
PINNED = re.compile(r"[\w.:/-]+:[\w.-]+@sha256:[0-9a-f]{64}")
#: The comment above a pinned image: where its digest is published, in which version of that, and when it was built.
SOURCE = re.compile(r"# Digest: (?:[\w-]+\.)+\w+/\S+, \S+ at [0-9a-f]{7,40}, (\d{4}-\d{2}-\d{2})")


class Image(NamedTuple):
    """An image that is pulled, and the comment line above the line that names it."""

    reference: str
    comment: str


def _above(text: str, line: str) -> str:
    lines = [item.strip() for item in text.splitlines()]
    return lines[lines.index(line) - 1] if lines.index(line) else ""


def images_of_dockerfile(text: str) -> list[Image]:
    """Bases, sources of copies and the frontend; not the file's own stages."""
    arguments: dict[str, str] = {}
    stages: set[str] = set()
    found = [Image(name, "") for name in re.findall(r"^#\s*syntax=(\S+)", text, re.MULTILINE)]
    for line in re.sub(r"\\\n", " ", text).splitlines():
        if match := re.fullmatch(r"ARG (\w+)=(\S+)", line):
            arguments[match[1]] = match[2]
        elif match := re.fullmatch(r"FROM (?:--\S+ )*(\S+)(?: AS (\S+))?", line, re.IGNORECASE):
            if match[1] not in stages:
                found.append(_resolved(match[1], line, text, arguments))
            stages |= {match[2]} if match[2] else set()
        elif (match := re.search(r"(?:--from=|[,=]from=)([^\s,]+)", line)) and match[1] not in stages:
            found.append(_resolved(match[1], line, text, arguments))
    return found


def _resolved(name: str, line: str, text: str, arguments: dict[str, str]) -> Image:
    """The image behind an argument; its comment stands above the argument then."""
    if match := re.fullmatch(r"\$\{(\w+)\}", name):
        name, line = arguments[match[1]], f"ARG {match[1]}={arguments[match[1]]}"
    comment = _above(text, line)
    return Image(re.sub(r"\$\{(\w+)\}", lambda found: arguments[found[1]], name), comment)


def images_of_compose(text: str) -> list[Image]:
    """Images of services that are not built here."""
    services: dict[str, dict[str, Any]] = yaml.safe_load(text)["services"]
    references = [str(item["image"]) for item in services.values() if "image" in item and "build" not in item]
    return [Image(name, _above(text, f"image: {name}")) for name in references]


def unpinned(images: list[Image]) -> set[str]:
    return {image.reference for image in images if "@" not in image.reference}


def problems(images: list[Image]) -> list[str]:
    """What is wrong with the pinned ones."""
    found = []
    for image in images:
        if "@" not in image.reference:
            continue
        if not PINNED.fullmatch(image.reference):
            found.append(f"{image.reference}: not name:tag@sha256: and 64 hexadecimal digits")
        if not SOURCE.fullmatch(image.comment):
            found.append(f"{image.reference}: the line above does not say where its digest is published")
    return found


def all_images(dockerfile: str = DOCKERFILE, compose: str = COMPOSE, sandbox: str = SANDBOX) -> list[Image]:
    return [*images_of_dockerfile(dockerfile), *images_of_compose(compose), *images_of_compose(sandbox)]


def test_every_image_is_pinned_or_a_known_exception() -> None:
    assert {image.reference.split("@")[0].rpartition(":")[0] for image in all_images()} == {
        "apache/airflow",
        "debian",
        "postgres",
        "redis",
    }
    assert unpinned(all_images()) == BY_TAG
    assert problems(all_images()) == []


DIGEST = re.findall(r"@sha256:[0-9a-f]{64}", COMPOSE)[0]


@pytest.mark.parametrize(
    "changed",
    [
        {"compose": COMPOSE.replace(DIGEST, DIGEST[:-1])},
        {"compose": COMPOSE.replace(DIGEST, DIGEST.replace("sha256", "sha512"))},
        {"compose": COMPOSE.replace(DIGEST, DIGEST.upper())},
        {"compose": COMPOSE.replace("postgres:16.15@", "postgres@")},
        {"compose": re.sub(r" *# Digest:.*\n", "", COMPOSE, count=1)},
        {"compose": re.sub(r"(# Digest:.*), \d{4}-\d{2}-\d{2}", r"\1", COMPOSE, count=1)},
        {"dockerfile": re.sub(r"# Digest:.*\n", "# from a good source\n", DOCKERFILE, count=1)},
    ],
)
def test_a_malformed_digest_and_one_without_a_source_are_found(changed: dict[str, str]) -> None:
    assert changed not in ({"compose": COMPOSE}, {"dockerfile": DOCKERFILE})
    assert len(problems(all_images(**changed))) == 1


@pytest.mark.parametrize(
    ("changed", "added"),
    [
        ({"compose": COMPOSE.replace(DIGEST, "")}, "postgres:16.15"),
        ({"compose": COMPOSE.replace("services:\n", "services:\n  new:\n    image: nginx:1\n", 1)}, "nginx:1"),
        ({"sandbox": SANDBOX.replace("services:\n", "services:\n  new:\n    image: nginx:1\n", 1)}, "nginx:1"),
        ({"dockerfile": f"# syntax=docker/dockerfile:1\n{DOCKERFILE}"}, "docker/dockerfile:1"),
        ({"dockerfile": f"{DOCKERFILE}FROM nginx:1 AS new\n"}, "nginx:1"),
        ({"dockerfile": f"{DOCKERFILE}COPY --from=nginx:1 /a /b\n"}, "nginx:1"),
        ({"dockerfile": f"{DOCKERFILE}RUN --mount=type=bind,from=nginx:1,target=/a true\n"}, "nginx:1"),
        ({"dockerfile": re.sub(r"(ARG DEBIAN_IMAGE=[^@]+)@\S+", r"\1", DOCKERFILE)}, "debian:bookworm-20260918-slim"),
    ],
)
def test_an_image_that_is_added_without_a_digest_is_found(changed: dict[str, str], added: str) -> None:
    assert unpinned(all_images(**changed)) == BY_TAG | {added}


def test_the_guide_names_exactly_the_images_that_are_pinned_by_tag() -> None:
    """And the one command that pins each, which writes the Dockerfile's own argument."""
    guide = (ROOT / "docs/guides/deploy.md").read_text()
    section = guide[guide.index("**What is pinned.**") : guide.index("`.dockerignore` admits")]
    assert set(re.findall(r"[\w/]+/[\w]+:\d[\w.-]+|\b(?:debian|postgres|redis):[\w.-]+", section)) == BY_TAG
    command = re.search(r"^sed -i .*$", section, re.MULTILINE)
    assert command is not None
    assert re.findall(r"\b(\w+_IMAGE)=", command[0]) == ["AIRFLOW_IMAGE"] * 2
    assert re.search(r"^ARG AIRFLOW_IMAGE=", DOCKERFILE, re.MULTILINE)
    assert next(iter(BY_TAG)) in command[0]
