"""Routes of sweeps and studies: submit, validate, list, follow, cancel, retry and delete."""

from collections.abc import AsyncIterator
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response
from pydantic import BaseModel

from app.core import table_responses
from app.core.context import Ctx
from app.core.openapi import problems
from app.core.routing import Cursor, IdempotencyKey, JsonBody, Limit, accepted, as_json, paged
from app.core.security import READ, needs
from app.core.turns import Kind
from app.specs.study import StudyParts, StudySpec
from app.specs.sweep import SweepSpec
from app.sweeps import rendering, service
from app.sweeps.rendering import Format
from app.sweeps.schemas import (
    CellPage,
    CellStatus,
    RetryStates,
    StudyOut,
    StudyPage,
    StudyValidation,
    SweepOut,
    SweepPage,
    SweepValidation,
    Table,
)
from app.tables.sweeps import STUDY, SWEEP

sweeps = APIRouter(prefix="/v1/sweeps", tags=["sweeps"])
studies = APIRouter(prefix="/v1/studies", tags=["studies"])

SWEEP_EXAMPLES: dict[str, Any] = {
    "grid": {
        "summary": "Three rates by two isolation ratios",
        "value": {
            "name": "How much must be isolated",
            "base": {
                "dataset": {"name": "digits"},
                "attack": {"name": "badnets"},
                "defenses": [{"name": "abl"}],
            },
            "grid": {"attack.poisoning_rate": [0.02, 0.05, 0.1], "defenses.0.isolation_ratio": [0.01, 0.05]},
        },
    },
    "overrides": {
        "summary": "Chosen cells",
        "value": {
            "base": {"dataset": {"name": "digits"}},
            "overrides": [
                {"attack": {"name": "blend", "alpha": 0.1}, "training.epochs": 10},
                {"attack": {"name": "sig"}, "seeds": [0, 1]},
            ],
        },
    },
}
STUDY_EXAMPLES: dict[str, Any] = {
    "digits": {
        "summary": "Three attacks, two defenses, three seeds on digits",
        "value": {
            "name": "Defenses on digits",
            "dataset": {"name": "digits"},
            "attacks": [
                {"attack": {"name": "badnets"}},
                {"attack": {"name": "badnets", "poisoning_rate": 0.02}, "label": "badnets 2 %"},
                {"attack": {"name": "sig"}},
            ],
            "defenses": [{"name": "abl"}, {"name": "fine_pruning"}],
            "seeds": [0, 1, 2],
        },
    },
    "bench": {
        "summary": "The defenses of the public leaderboard against two attacks, on digits",
        "value": {
            "preset": "bench",
            "dataset": {"name": "digits"},
            "model": {"name": "small_cnn"},
            "attacks": [{"attack": {"name": "badnets"}}, {"attack": {"name": "blend"}}],
        },
    },
}
EXTENSION_EXAMPLES: dict[str, Any] = {
    "defense": {"summary": "One more defense", "value": {"defenses": [{"name": "nad"}]}},
    "nothing": {"summary": "Only fill cells whose experiment was deleted", "value": {}},
}
SweepBody = Annotated[SweepSpec, Body(openapi_examples=SWEEP_EXAMPLES)]
StudyBody = Annotated[StudySpec, Body(openapi_examples=STUDY_EXAMPLES)]
ExtensionBody = Annotated[StudyParts, Body(openapi_examples=EXTENSION_EXAMPLES)]
FormatQuery = Annotated[
    Format | None, Query(description="Overrides the Accept header", examples=["markdown"])
]
PLANNING = Kind("requests that plan a sweep or a study", per_owner=8, width=2)
"""Each may plan `BDLAB_MAX_SWEEP_CELLS` experiments, in one of the threads that all requests share."""


async def _take_planning_turn(context: Ctx) -> AsyncIterator[None]:
    async with context.turns.take(PLANNING, context.principal.owner_id):
        yield


IN_TURN = [Depends(_take_planning_turn, scope="function")]
SUBMISSION: dict[str, Any] = {
    "status_code": 202,
    "responses": problems(400, 413, 415, 422, 429),
    "dependencies": IN_TURN,
}
VALIDATION: dict[str, Any] = {"responses": SUBMISSION["responses"], "dependencies": IN_TURN}


@sweeps.post("", summary="Submit a sweep", response_model=SweepOut, **SUBMISSION)
def submit_sweep(
    context: Ctx, spec: SweepBody, _json: JsonBody, idempotency_key: IdempotencyKey = None
) -> Response:
    """Queue one experiment for every combination of the `grid`, or for every entry of `overrides`.

    All cells are checked first. If one cannot run, nothing is queued, and the problem names the cell, the field and
    its value. Two cells with equal results are an error too. Works with an `Idempotency-Key`.
    """
    answer, replayed = service.submit(context, spec, idempotency_key)
    return accepted(answer, f"/v1/sweeps/{answer['id']}", replayed=replayed)


@sweeps.post(":validate", summary="Check a sweep without running it", **VALIDATION)
@needs(READ)
def validate_sweep(context: Ctx, spec: SweepBody, _json: JsonBody) -> SweepValidation:
    """The number of cells, and how many of their stages are cached. Nothing is stored."""
    return service.validate_sweep(context, spec)


@sweeps.get(
    "/{sweep_id}/cells",
    response_model=CellPage,
    summary="A sweep's cells",
    responses=problems(400, 404, 422),
)
def cells(
    sweep_id: str,
    request: Request,
    context: Ctx,
    status: CellStatus | None = None,
    limit: Limit = 100,
    cursor: Cursor = None,
) -> Response:
    """One page of cells in the order of the grid: coordinates, experiment, status, and a summary of the results."""
    page, following = service.list_cells(context, sweep_id, status, cursor, limit)
    return paged(request, following, lambda link: CellPage(cells=page, next=link))


@studies.post("", summary="Submit a study", response_model=StudyOut, **SUBMISSION)
def submit_study(
    context: Ctx, spec: StudyBody, _json: JsonBody, idempotency_key: IdempotencyKey = None
) -> Response:
    """Run every attack against every defense, for a table of clean accuracy, attack success and effectiveness.

    Cells with results in one of your earlier experiments reuse them. The others are queued as one experiment for each
    attack and seed, with all defenses that are missing there. All cells are checked first; if one cannot run, nothing
    is queued. Works with an `Idempotency-Key`.
    """
    answer, replayed = service.submit(context, spec, idempotency_key)
    return accepted(answer, f"/v1/studies/{answer['id']}", replayed=replayed)


@studies.post(":validate", summary="Check a study without running it", **VALIDATION)
@needs(READ)
def validate_study(context: Ctx, spec: StudyBody, _json: JsonBody) -> StudyValidation:
    """The number of cells, how many have results already, and what the others require. Nothing is stored."""
    return service.validate_study(context, spec)


@studies.get(
    "/{study_id}/table",
    summary="A study's table",
    response_model=Table,
    responses={
        200: table_responses.document_formats("csv", "markdown", "latex", "html"),
        **problems(404, 422),
    },
)
def table(
    study_id: str,
    context: Ctx,
    accept: Annotated[str | None, Header()] = None,
    format: FormatQuery = None,
) -> Response:
    """Attacks x arms: clean accuracy, attack success rate and defense effectiveness, mean and 95 % interval over seeds.

    Available at any time; cells without results say why: queued, running, failed, canceled or missing.
    CSV has one line for each attack and arm; Markdown, LaTeX (booktabs) and HTML show percentages.
    """
    chosen = table_responses.choose_format(format, accept, get_args(Format))
    _, table = service.get_study_with_table(context, study_id)
    media_type = table_responses.MEDIA_TYPES[chosen]
    return Response(rendering.RENDERERS[chosen](table), media_type=media_type, headers={"Vary": "Accept"})


@studies.post(
    "/{study_id}:extend",
    status_code=202,
    response_model=StudyOut,
    summary="Add to a study",
    responses=problems(400, 404, 409, 413, 415, 422, 429),
    dependencies=IN_TURN,
)
def extend(study_id: str, context: Ctx, more: ExtensionBody, _json: JsonBody) -> Response:
    """Add attacks, defenses or seeds, and queue only what is missing. Idempotent: present parts stay as they are."""
    return as_json(service.extend_study(context, study_id, more), status=202)


def _add_common_routes(router: APIRouter, kind: str, out: type[BaseModel], page: type[BaseModel]) -> None:
    """Add the routes that sweeps and studies have in common."""
    plural = str(router.tags[0])
    path = f"/{{{kind}_id}}"
    action: dict[str, Any] = {"status_code": 202, "responses": problems(404, 422)}
    id_in_path = Path(alias=f"{kind}_id")

    @router.get("", summary=f"List {plural}", response_model=page, responses=problems(400, 422))
    def listing(request: Request, context: Ctx, limit: Limit = 50, cursor: Cursor = None) -> Response:
        """One page, newest first. Follow `next`, or the `Link` header, for more."""
        batches, following = service.list_page(context, kind, cursor, limit)
        return paged(request, following, lambda link: page.model_validate({plural: batches, "next": link}))

    @router.get(path, response_model=out, summary=f"How a {kind} stands", responses=problems(404, 422))
    def get(context: Ctx, batch_id: str = id_in_path) -> Response:
        """The request, the number of experiments in each state, and the share of the work that is done."""
        return as_json(service.get(context, kind, batch_id))

    @router.post(f"{path}:cancel", summary=f"Cancel a {kind}", response_model=out, **action)
    def cancel(context: Ctx, batch_id: str = id_in_path) -> Response:
        """Cancel the experiments that it submitted and that have not ended. Existing results stay. Idempotent."""
        return as_json(service.cancel(context, kind, batch_id), status=202)

    @router.post(f"{path}:retry", summary=f"Retry a {kind}'s failed cells", response_model=out, **action)
    def retry(context: Ctx, batch_id: str = id_in_path, state: RetryStates = None) -> Response:
        """Requeue the experiments that failed or in which an arm failed; with `state=canceled` the canceled ones.
        Finished stages are not computed again."""
        return as_json(service.retry(context, kind, batch_id, state or ["failed"]), status=202)

    @router.delete(path, status_code=204, summary=f"Delete a {kind}", responses=problems(404, 409, 422))
    def remove(context: Ctx, batch_id: str = id_in_path) -> None:
        """Delete it and the experiments that it submitted, except those that another sweep or study uses."""
        service.remove(context, kind, batch_id)


_add_common_routes(sweeps, SWEEP, SweepOut, SweepPage)
_add_common_routes(studies, STUDY, StudyOut, StudyPage)
router = APIRouter()
router.include_router(sweeps)
router.include_router(studies)
