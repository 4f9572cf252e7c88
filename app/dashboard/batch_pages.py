"""Pages about many experiments: the leaderboard, sweeps and studies."""

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, ConfigDict

from app.core.context import Ctx
from app.dashboard.rendering import PageRoute, page
from app.results.leaderboard import service as leaderboard
from app.results.leaderboard.schemas import PublishedCell
from app.sweeps import service as batches
from app.tables.sweeps import STUDY, SWEEP

router = APIRouter(route_class=PageRoute, include_in_schema=False)
PER_PAGE = 50
MAX_LINKS = 5
"""Experiments that one cell of a study links to; each seed may have its own."""


class BoardQuery(BaseModel):
    """Board selection; an empty rate matches all rates."""

    model_config = ConfigDict(extra="forbid")

    board: str = "digits small_cnn"
    rate: str = ""


@router.get("/leaderboard")
def show_leaderboard(request: Request, context: Ctx, query: Annotated[BoardQuery, Query()]) -> Response:
    """Attacks against defenses: results measured here next to published ones."""
    dataset, _, model = query.board.partition(" ")
    rate = float(query.rate) if query.rate.replace(".", "", 1).isdigit() else None
    board = leaderboard.leaderboard(context, dataset, model or "small_cnn", rate)
    selected = f"{board.dataset} {board.model}"
    published: dict[tuple[str, str], list[PublishedCell]] = {}
    for cell in board.published:
        published.setdefault((cell.attack, cell.defense), []).append(cell)
    return page(
        request,
        "leaderboard.html",
        board=board,
        selected=selected,
        board_names=list(dict.fromkeys([*(f"{b.dataset} {b.model}" for b in board.boards), selected])),
        rate="" if rate is None else query.rate,
        cells={(cell.attack, cell.defense): cell for cell in board.cells},
        published_cells=published,
    )


@router.get("/sweeps")
def listing(request: Request, context: Ctx) -> Response:
    """The newest sweeps and studies."""
    studies, more_studies = batches.list_page(context, STUDY, None, PER_PAGE)
    sweeps, more_sweeps = batches.list_page(context, SWEEP, None, PER_PAGE)
    return page(
        request,
        "sweeps.html",
        groups=[
            ("Studies", "/studies", "/new/study", studies, more_studies),
            ("Sweeps", "/sweeps", "/new/sweep", sweeps, more_sweeps),
        ],
        page_size=PER_PAGE,
    )


@router.get("/sweeps/{sweep_id}")
def sweep(
    request: Request, context: Ctx, sweep_id: str, cursor: Annotated[str | None, Query()] = None
) -> Response:
    """The cells of a sweep with their results."""
    batch = batches.get(context, SWEEP, sweep_id)
    cells, next_cursor = batches.list_cells(context, sweep_id, None, cursor, PER_PAGE)
    paths = list(dict.fromkeys(path for cell in cells for path in cell.coordinates))
    return page(request, "sweep.html", sweep=batch, cells=cells, paths=paths, next_cursor=next_cursor)


@router.get("/studies/{study_id}")
def study(request: Request, context: Ctx, study_id: str) -> Response:
    """The attack x defense matrix of a study."""
    batch, table = batches.get_study_with_table(context, study_id)
    return page(request, "study.html", study=batch, table=table, max_links=MAX_LINKS)
