"""Pages of many experiments at once: the leaderboard, sweeps, studies."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from app.core.context import Ctx
from app.dashboard.rendering import PageRoute, page
from app.results.leaderboard import service as leaderboard
from app.sweeps import service as sweeps
from app.sweeps.studies import service as studies

router = APIRouter(route_class=PageRoute, include_in_schema=False)
PER_PAGE = 50
MOST_LINKS = 5
"""Experiments to which one cell of a study leads; each seed has its own."""


class BoardQuery(BaseModel):
    """Which board; a rate that is empty is any."""

    model_config = ConfigDict(extra="forbid")

    board: str = "digits small_cnn"
    rate: str = ""


@router.get("/leaderboard")
def board(request: Request, context: Ctx, query: Annotated[BoardQuery, Query()]) -> Response:
    """Attacks against defenses: what was measured here, and beside it what others published."""
    dataset, _, model = query.board.partition(" ")
    rate = float(query.rate) if query.rate.replace(".", "", 1).isdigit() else None
    found = leaderboard.leaderboard(context, dataset, model or "small_cnn", rate)
    names = [f"{one.dataset} {one.model}" for one in found.boards]
    return page(
        request,
        "leaderboard.html",
        board=found,
        chosen=f"{found.dataset} {found.model}",
        names=list(dict.fromkeys([*names, f"{found.dataset} {found.model}"])),
        rate="" if rate is None else query.rate,
        ours={(cell.attack, cell.defense): cell for cell in found.cells},
        quoted={
            place: [c for c in found.published if (c.attack, c.defense) == place]
            for place in {(c.attack, c.defense) for c in found.published}
        },
    )


@router.get("/sweeps")
def listing(request: Request, context: Ctx) -> Response:
    """The newest sweeps and studies."""
    found, more = sweeps.listing(context, None, PER_PAGE)
    tables, more_tables = studies.listing(context, None, PER_PAGE)
    return page(
        request,
        "sweeps.html",
        groups=[
            ("Studies", "/studies", "/new/study", tables, more_tables),
            ("Sweeps", "/sweeps", "/new/sweep", found, more),
        ],
        most=PER_PAGE,
    )


@router.get("/sweeps/{sweep_id}")
def sweep(
    request: Request, context: Ctx, sweep_id: str, cursor: Annotated[str | None, Query()] = None
) -> Response:
    """The cells of a sweep with their numbers."""
    found = sweeps.get(context, sweep_id)
    cells, following = sweeps.cells(context, sweep_id, None, cursor, PER_PAGE)
    names = list(dict.fromkeys(name for cell in cells for name in cell.coordinates))
    here = f"{request.url.path}?{request.url.query}"
    return page(request, "sweep.html", sweep=found, cells=cells, names=names, next=following, here=here)


@router.get("/studies/{study_id}")
def study(request: Request, context: Ctx, study_id: str) -> Response:
    """The attack x defense matrix of a study."""
    found, table = studies.get_with_table(context, study_id)
    return page(request, "study.html", study=found, table=table, most=MOST_LINKS)
