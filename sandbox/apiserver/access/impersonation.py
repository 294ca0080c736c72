"""Impersonation: what the Impersonate-* headers ask for, and who may use them.

Source: apiserver v1.36 pkg/endpoints/filters/impersonation/{constrained_impersonation,mode}.go. From 1.36 on the
constrained modes are tried first (feature ConstrainedImpersonation, beta there); before, only the verb ``impersonate``
counts. The refusal is always that of the first mode that applies. Not simulated: a service account that acts as the
node it runs on.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from urllib.parse import unquote

from aiohttp import web

from sandbox.apiserver.access.auth import AUTHENTICATED, MASTERS, User
from sandbox.apiserver.access.rbac import Attributes, Authorizer
from sandbox.apiserver.errors import ApiError, bad_request

_ACCOUNT = re.compile(r"system:serviceaccount:([^:]+):([^:]+)")
_NODE = re.compile(r"system:node:(.+)")
_EXTRA = "impersonate-extra-"
_AUTHENTICATION = "authentication.k8s.io"
_UNAUTHENTICATED = "system:unauthenticated"
_ANONYMOUS = "system:anonymous"


@dataclass(frozen=True)
class _Mode:
    """
    :ivar verb: what the user must be allowed to do to the identity.
    :ivar group: API group of users and groups.
    """

    verb: str
    group: str = _AUTHENTICATION


_LEGACY = _Mode("impersonate", "")


def wanted(request: web.Request) -> User | None:
    """
    The identity that the headers ask for; ``None`` without any.

    :raises ApiError: 400 for groups, a uid or extra values without a name.
    """
    name = request.headers.get("Impersonate-User", "")
    groups = tuple(request.headers.getall("Impersonate-Group", []))
    uid = request.headers.get("Impersonate-Uid", "")
    extra: dict[str, tuple[str, ...]] = {}
    for header, value in request.headers.items():
        if header.lower().startswith(_EXTRA):
            key = unquote(header[len(_EXTRA) :].lower())
            extra[key] = (*extra.get(key, ()), value)
    if not name:
        if groups or uid or extra:
            raise bad_request(f"requested {_struct(uid, groups, extra)} without impersonating a user name")
        return None
    return User(name, groups, uid, extra)


def _struct(uid: str, groups: tuple[str, ...], extra: dict[str, tuple[str, ...]]) -> str:
    """``%#v`` of Go's ``*user.DefaultInfo``."""
    quoted = ", ".join(f'"{group}"' for group in groups)
    shown_groups = f"[]string{{{quoted}}}" if groups else "[]string(nil)"
    values = ", ".join(
        f'"{key}":[]string{{' + ", ".join(f'"{value}"' for value in items) + "}" for key, items in extra.items()
    )
    shown_extra = f"map[string][]string{{{values}}}" if extra else "map[string][]string(nil)"
    return f'&user.DefaultInfo{{Name:"", UID:"{uid}", Groups:{shown_groups}, Extra:{shown_extra}}}'


def check(authorizer: Authorizer, asker: User, target: User, request: Attributes, *, constrained: bool) -> User:
    """
    The identity to act as.

    :param request: what is to be done as ``target``.
    :param constrained: whether the server has constrained impersonation (1.36 and later).
    :raises ApiError: 403 in the words of the first mode that applies.
    """
    first: ApiError | None = None
    for mode, on in _modes(target) if constrained else [(_LEGACY, "")]:
        try:
            if on:
                authorizer.check(asker, replace(request, verb=f"impersonate-on:{on}:{request.verb}"))
            for attributes in _asked(target, mode):
                authorizer.check(asker, attributes)
        except ApiError as refusal:
            first = first or refusal
            continue
        return _complete(target, mode)
    assert first is not None  # noqa: S101 - the legacy mode always applies
    raise first


def _modes(target: User) -> Iterator[tuple[_Mode, str]]:
    """The modes that apply, with their names in the verb ``impersonate-on:…``; "" for the legacy one."""
    alone = not (target.groups or target.uid or target.extra)
    node, account = _NODE.fullmatch(target.name), _ACCOUNT.fullmatch(target.name)
    name = ""
    if node and alone:
        name = "arbitrary-node"
    elif account and alone:
        name = "serviceaccount"
    elif not node and not account and MASTERS not in target.groups:
        name = "user-info"
    if name:
        yield _Mode(f"impersonate:{name}"), name
    yield _LEGACY, ""


def _asked(target: User, mode: _Mode) -> Iterator[Attributes]:
    """All that the asker must be allowed, one after the other."""
    account, node = _ACCOUNT.fullmatch(target.name), _NODE.fullmatch(target.name)
    if account:
        yield Attributes(mode.verb, mode.group, "serviceaccounts", namespace=account[1], name=account[2])
    elif node and mode is not _LEGACY:
        yield Attributes(mode.verb, mode.group, "nodes", name=node[1])
    else:
        yield Attributes(mode.verb, mode.group, "users", name=target.name)
    if target.uid:
        yield Attributes(mode.verb, _AUTHENTICATION, "uids", name=target.uid)
    for group in target.groups:
        yield Attributes(mode.verb, mode.group, "groups", name=group)
    for key, values in target.extra.items():
        for value in values:
            yield Attributes(mode.verb, _AUTHENTICATION, "userextras", key, name=value)


def _complete(target: User, mode: _Mode) -> User:
    groups = target.groups
    account = _ACCOUNT.fullmatch(target.name)
    if account and not groups:
        groups = ("system:serviceaccounts", f"system:serviceaccounts:{account[1]}")
    elif _NODE.fullmatch(target.name) and mode is not _LEGACY:
        groups = ("system:nodes",)
    added = _UNAUTHENTICATED if target.name == _ANONYMOUS else AUTHENTICATED
    if added not in groups and _UNAUTHENTICATED not in groups:
        groups = (*groups, added)
    return replace(target, groups=groups)
