"""``python -m sandbox reservation add|change|list``: capacity reservations and Capacity Blocks."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable
from typing import Any

from sandbox.state import SandboxError

#: Asks the control API: options, method, path, body.
Call = Callable[..., Any]

_FIELDS = "fields of POST /reservations (sandbox/cloud/reserving.py); values are JSON or plain text"


def add_to(commands: Any, common: argparse.ArgumentParser, call: Call) -> None:
    """Add the command to the parser."""

    def add(options: argparse.Namespace) -> int:
        print(_shown(call(options, "POST", "/reservations", pairs(options.fields))))
        return 0

    def change(options: argparse.Namespace) -> int:
        print(_shown(call(options, "POST", f"/reservations/{options.id}", pairs(options.fields))))
        return 0

    def listed(options: argparse.Namespace) -> int:
        for each in call(options, "GET", "/reservations"):
            print(_shown(each), *each["Instances"])
        return 0

    parser = commands.add_parser("reservation", help="capacity reservations and Capacity Blocks")
    verbs = parser.add_subparsers(required=True, metavar="VERB")
    adding = verbs.add_parser("add", parents=[common], help="reserve: instanceType=p4d.24xlarge zone=us-west-2a …")
    adding.add_argument("fields", metavar="FIELD=VALUE", nargs="+", help=_FIELDS)
    adding.set_defaults(command=add)
    changing = verbs.add_parser(
        "change", parents=[common], help="extend, resize or cancel: endsIn=7200, state=cancelled"
    )
    changing.add_argument("id", metavar="ID")
    changing.add_argument("fields", metavar="FIELD=VALUE", nargs="+", help=_FIELDS)
    changing.set_defaults(command=change)
    verbs.add_parser("list", parents=[common], help="list them, with their instances").set_defaults(command=listed)


def pairs(texts: Iterable[str]) -> dict[str, Any]:
    """``KEY=VALUE`` each.

    :raises SandboxError: for a text without ``=``.
    """
    found = {}
    for text in texts:
        key, separator, value = text.partition("=")
        if not separator:
            raise SandboxError(f"{text!r} must be KEY=VALUE", code=2)
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def _shown(each: dict[str, Any]) -> str:
    times = f"{each['StartDate']} – {each.get('EndDate', 'open end')}"
    kind, places = each["ReservationType"], f"{each['AvailableInstanceCount']} free"
    what = f"{each['InstanceType']} in {each['AvailabilityZone']}"
    return f"{each['CapacityReservationId']} {kind} {each['State']}: {what}, {places}, {times}"
