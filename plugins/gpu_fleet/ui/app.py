"""The plugin's web application. It reads Airflow's database, never a cluster, and changes nothing.

Airflow mounts a plugin's application without any authentication, so here the whole application demands a user, and each
route the permission for what it shows: the XComs of that DAG, or assets.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Annotated, Any
from urllib.parse import quote

from airflow.api_fastapi.app import get_auth_manager
from airflow.api_fastapi.auth.managers.models.resource_details import DagAccessEntity
from airflow.api_fastapi.common.db.common import SessionDep
from airflow.api_fastapi.core_api.security import GetUserDep, get_user, requires_access_asset, requires_access_dag
from fastapi import Depends, FastAPI, HTTPException, Query, Request, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from gpu_fleet.core.links import PREFIX, history_path, report_path
from gpu_fleet.core.markup import html, markdown
from gpu_fleet.core.markup.blocks import (
    Badge,
    Block,
    Heading,
    Inline,
    Link,
    Paragraph,
    Table,
    Text,
    clean,
    code,
    moment,
    text,
)
from gpu_fleet.core.pools.history import VerdictAt, by_node
from gpu_fleet.core.reports import junit
from gpu_fleet.core.reports.document import document, history_table
from gpu_fleet.core.reports.model import RunReport
from gpu_fleet.ui.queries import load_history, load_run

#: The pages are text and one style: nothing else may be loaded, run, sent, or framed by another site.
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {html.STYLE_SOURCE}; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'self'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "private, no-store",
}
#: Verdicts that a history page shows at most.
MOST_VERDICTS = 500

_MAY_READ_RUN = [
    Depends(requires_access_dag("GET", DagAccessEntity.RUN)),
    Depends(requires_access_dag("GET", DagAccessEntity.XCOM)),
]


def create_app() -> FastAPI:
    """The application, to be mounted at :data:`gpu_fleet.core.links.PREFIX`."""
    app = FastAPI(title="gpu-fleet", docs_url=None, redoc_url=None, openapi_url=None, dependencies=[Depends(get_user)])

    @app.middleware("http")
    async def with_headers(request: Request, call: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call(request)
        response.headers.update(HEADERS)
        return response

    app.add_exception_handler(StarletteHTTPException, _problem)
    report, history = "/reports/{dag_id}/{run_id}", "/history/{cluster}/{pool}"
    may_read_assets = [Depends(requires_access_asset("GET"))]
    routes: list[tuple[str, Callable[..., Response], list[Any]]] = [
        (report, run_html, _MAY_READ_RUN),
        (f"{report}/report.html", run_html, _MAY_READ_RUN),
        (f"{report}/report.md", run_markdown, _MAY_READ_RUN),
        (f"{report}/report.json", run_json, _MAY_READ_RUN),
        (f"{report}/junit.xml", run_junit, _MAY_READ_RUN),
        (history, history_html, may_read_assets),
        (f"{history}/history.json", history_json, may_read_assets),
    ]
    for path, serve, needed in routes:
        app.add_api_route(path, serve, methods=["GET"], dependencies=needed, response_class=Response)
    return app


def _root(request: Request) -> str:
    """The prefix of the Airflow UI's paths, if a proxy serves it below a path."""
    return str(request.scope.get("root_path", "")).rstrip("/").removesuffix(PREFIX)


def _report(dag_id: str, run_id: str, request: Request, user: GetUserDep, session: SessionDep) -> RunReport:
    manager = get_auth_manager()
    may_read_assets = manager.is_authorized_asset(method="GET", user=user)
    readable = manager.get_authorized_dag_ids(user=user, method="GET") if may_read_assets else None
    found = load_run(session, dag_id, run_id, readable=readable, root=_root(request))
    if found is None:
        raise HTTPException(404, f"there is no run {run_id!r} of DAG {dag_id!r}")
    return found


RunDep = Annotated[RunReport, Depends(_report)]


def run_html(run: RunDep) -> Response:
    here = run.root + report_path(run.dag_id, run.run_id)
    links = [
        Link("Markdown", f"{here}/report.md"),
        Link("JUnit XML", f"{here}/junit.xml"),
        Link("JSON", f"{here}/report.json"),
    ]
    page = html.render(document(run), f"{run.headline()} – {run.cluster}", links)
    return Response(page, media_type="text/html")


def run_markdown(run: RunDep) -> Response:
    return Response(markdown.render(document(run)), media_type="text/markdown")


def run_junit(run: RunDep) -> Response:
    return Response(junit.render(run), media_type="application/xml")


def run_json(run: RunDep) -> Response:
    return _json(run.to_json())


def _history(
    cluster: str,
    pool: str,
    user: GetUserDep,
    session: SessionDep,
    limit: Annotated[int, Query(ge=1, le=MOST_VERDICTS)] = 50,
) -> list[VerdictAt]:
    readable = get_auth_manager().get_authorized_dag_ids(user=user, method="GET")
    found = load_history(session, cluster, pool, readable=readable, limit=limit)
    if not found:
        raise HTTPException(404, f"there is no verdict on pool {pool!r} of cluster {cluster!r} that you may see")
    return found


VerdictsDep = Annotated[list[VerdictAt], Depends(_history)]


def history_html(request: Request, cluster: str, pool: str, found: VerdictsDep) -> Response:
    root = _root(request)
    blocks: list[Block] = [
        Heading(1, f"GPU pool {clean(pool)} of {clean(cluster)}", str(found[0].state)),
        Paragraph((text(found[0].message or found[0].reason),), lead=True),
        Paragraph((Text(f"{len(found)} verdict(s), newest first; Airflow keeps them as asset events."),)),
        history_table(tuple(found), root),
    ]
    nodes = by_node(found)
    if nodes:
        blocks += [Heading(2, "Node by node"), _nodes_table(nodes)]
    links = [Link("JSON", f"{root}{history_path(cluster, pool)}/history.json")]
    return Response(html.render(blocks, f"{clean(pool)} – {clean(cluster)}", links), media_type="text/html")


def _nodes_table(nodes: dict[str, list[tuple[VerdictAt, str]]]) -> Table:
    rows: list[tuple[Inline, ...]] = []
    for name, entries in nodes.items():
        verdict, outcome = entries[0]
        failures = [(each, words) for each, words in entries if words != "Passed"]
        last = f"{moment(failures[0][0].at)}: {clean(failures[0][1])}" if failures else "–"
        rows.append(
            (
                code(name),
                Badge(clean(outcome)),
                text(moment(verdict.at)),
                text(len(entries)),
                text(len(failures)),
                text(last),
            )
        )
    head = ("node", "newest", "at (UTC)", "verdicts", "not passed", "last that was not passed")
    return Table("Verdicts of each node", head, tuple(rows), frozenset({3, 4}))


def history_json(cluster: str, pool: str, found: VerdictsDep) -> Response:
    return _json({"cluster": cluster, "pool": pool, "verdicts": [verdict.to_json() for verdict in found]})


def _json(value: Any) -> Response:
    return Response(json.dumps(value, allow_nan=False, default=str), media_type="application/json")


async def _problem(request: Request, error: Exception) -> Response:
    """An error as JSON for programs, and for a browser as a page that says what to do next."""
    status = int(getattr(error, "status_code", 500))
    detail = str(getattr(error, "detail", ""))
    headers = getattr(error, "headers", None)
    if "text/html" not in request.headers.get("accept", ""):
        return Response(json.dumps({"detail": detail}), status, headers, "application/json")
    root = _root(request)
    parts: list[Inline] = [text(detail), Text(". ")]
    if status == 401:
        following = quote(root + PREFIX + request.url.path.partition(PREFIX)[2], safe="/")
        parts.append(Link("Log in", f"{root}/api/v2/auth/login?next={following}"))
    else:
        parts.append(Link("Airflow", f"{root}/"))
    title = {401: "Not logged in", 403: "Not allowed", 404: "Not found"}.get(status, f"Error {status}")
    page = html.render([Heading(1, title), Paragraph(tuple(parts))], title)
    return Response(page, status, headers, "text/html")
