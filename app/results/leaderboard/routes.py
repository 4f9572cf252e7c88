"""GET /v1/leaderboard and GET /v1/leaderboard/pareto."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.table_responses import FormatQuery
from app.results.leaderboard import service, tables_out
from app.results.leaderboard.schemas import Fronts, Leaderboard
from app.results.rendering import TABLES, Accept, respond

router = APIRouter(prefix="/v1", tags=["results"])

Dataset = Annotated[
    str,
    Query(
        description="Name of the dataset; `imported/KEY` for an imported one.",
        examples=["cifar10"],
        max_length=80,
    ),
]
Model = Annotated[str, Query(examples=["resnet18"], max_length=64)]
Rate = Annotated[
    float | None, Query(description="Only settings with this poisoning rate.", gt=0, le=1, examples=[0.1])
]


@router.get(
    "/leaderboard",
    summary="Attacks against defenses",
    response_model=Leaderboard,
    responses={200: TABLES, **problems(422)},
)
def leaderboard(
    context: Ctx,
    dataset: Dataset = "digits",
    model: Model = "small_cnn",
    poisoning_rate: Rate = None,
    format: FormatQuery = None,
    accept: Accept = None,
) -> Response:
    """For each attack and defense the clean accuracy, the attack success rate and the defense effectiveness rating.

    Numbers are means over seeds with their 95 % intervals. Settings are never mixed: a cell shows the setting of its
    attack and defense that has the most seeds, and links to its results. Published numbers are listed separately with
    their source; they were not measured here. CSV and Parquet have one row for each cell; Markdown and LaTeX are a
    matrix of attacks and defenses.
    """
    board = service.leaderboard(context, dataset, model, poisoning_rate)
    return respond(
        board, format, accept, "leaderboard", lambda readable: tables_out.board(board, readable=readable)
    )


@router.get(
    "/leaderboard/pareto",
    summary="Pareto fronts of accuracy and safety",
    response_model=Fronts,
    responses={200: TABLES, **problems(422)},
)
def pareto(
    context: Ctx,
    dataset: Dataset = "digits",
    model: Model = "small_cnn",
    poisoning_rate: Rate = None,
    format: FormatQuery = None,
    accept: Accept = None,
) -> Response:
    """For each attack the defenses as points (clean accuracy, 1 - attack success rate), and which are on the front.

    A table has one row for each point.
    """
    fronts = service.fronts(context, dataset, model, poisoning_rate)
    return respond(
        fronts, format, accept, "pareto", lambda readable: tables_out.points(fronts, readable=readable)
    )
