"""GET /v1/leaderboard."""

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response

from app.core import table_responses
from app.core.context import Ctx
from app.core.openapi import problems
from app.core.query_parameters import reject_unknown_parameters
from app.core.routing import as_json
from app.results.leaderboard import service, tables_out
from app.results.leaderboard.schemas import Fronts, Leaderboard

router = APIRouter(prefix="/v1", tags=["results"], dependencies=[Depends(reject_unknown_parameters)])

Dataset = Annotated[
    str,
    Query(description="Its name; an imported one is `imported/KEY`.", examples=["cifar10"], max_length=80),
]
Model = Annotated[str, Query(examples=["resnet18"], max_length=64)]
Rate = Annotated[
    float | None, Query(description="Only settings with this poisoning rate.", gt=0, le=1, examples=[0.1])
]


@router.get(
    "/leaderboard",
    summary="Attacks against defenses",
    response_model=Leaderboard,
    responses={200: table_responses.document_formats("csv", "markdown", "latex", "parquet"), **problems(422)},
)
def leaderboard(
    context: Ctx,
    dataset: Dataset = "digits",
    model: Model = "small_cnn",
    poisoning_rate: Rate = None,
    format: table_responses.FormatQuery = None,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """For each attack and defense the clean accuracy, the attack success rate and the defense effectiveness rating.

    Means with 95 % intervals and counts over seeds. Settings are never mixed: a cell shows the one setting of its
    pair that has the most seeds, and links to it. Published numbers stand beside ours and name their source; they
    were not measured here. CSV and parquet have one row a cell, Markdown and LaTeX are a matrix for people.
    """
    board = service.leaderboard(context, dataset, model, poisoning_rate)
    kind = table_responses.choose_table_format(format, accept)
    if kind == "json":
        return as_json(board, headers={"Vary": "Accept"})
    columns, rows = (
        tables_out.matrix(board)
        if kind in ("markdown", "latex")
        else (tables_out.LONG, tables_out.long(board))
    )
    return table_responses.respond(kind, columns, rows, "leaderboard")


@router.get(
    "/leaderboard/pareto",
    summary="Accuracy against safety",
    response_model=Fronts,
    responses={200: table_responses.document_formats("csv", "markdown", "latex", "parquet"), **problems(422)},
)
def pareto(
    context: Ctx,
    dataset: Dataset = "digits",
    model: Model = "small_cnn",
    poisoning_rate: Rate = None,
    format: table_responses.FormatQuery = None,
    accept: Annotated[str | None, Header()] = None,
) -> Response:
    """For each attack the defenses as points (clean accuracy, 1 - attack success rate), and which are on the front.

    As a table one row a point.
    """
    fronts = service.fronts(context, dataset, model, poisoning_rate)
    kind = table_responses.choose_table_format(format, accept)
    if kind == "json":
        return as_json(fronts, headers={"Vary": "Accept"})
    rows = tables_out.points(fronts, for_people=kind in ("markdown", "latex"))
    return table_responses.respond(kind, tables_out.POINTS, rows, "pareto")
