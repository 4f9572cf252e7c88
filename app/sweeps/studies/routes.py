"""Submit, extend, find, cancel, retry and delete studies, and their tables."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, Query, Request, Response

from app.core.context import Ctx
from app.core.openapi import problems
from app.core.query_parameters import reject_unknown_parameters
from app.core.routing import Cursor, IdempotencyKey, JsonBody, Limit, accepted, as_json, paged
from app.core.security import READ, needs
from app.specs.study import StudyParts, StudySpec
from app.sweeps.schemas import RetryStates
from app.sweeps.studies import pages, service
from app.sweeps.studies.pages import MEDIA_TYPES, Format
from app.sweeps.studies.schemas import StudyOut, StudyPage, StudyValidation, Table

router = APIRouter(prefix="/v1", tags=["studies"], dependencies=[Depends(reject_unknown_parameters)])

EXAMPLES: dict[str, Any] = {
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
}
MORE: dict[str, Any] = {
    "defense": {"summary": "One more defense", "value": {"defenses": [{"name": "nad"}]}},
    "nothing": {"summary": "Only fill cells whose experiment was deleted", "value": {}},
}
Spec = Annotated[StudySpec, Body(openapi_examples=EXAMPLES)]
More = Annotated[StudyParts, Body(openapi_examples=MORE)]
TEXTS = {kind: {"schema": {"type": "string"}} for kind in MEDIA_TYPES.values() if kind != MEDIA_TYPES["json"]}


@router.post(
    "/studies",
    status_code=202,
    response_model=StudyOut,
    summary="Submit a study",
    responses=problems(400, 413, 415, 422),
)
def submit(context: Ctx, spec: Spec, _json: JsonBody, idempotency_key: IdempotencyKey = None) -> Response:
    """Run every attack against every defense, for a table of clean accuracy, attack success and effectiveness.

    Cells whose numbers an earlier experiment of yours has already are taken from there. The rest is queued as one
    experiment for each attack and seed, with all defenses that are missing there. All is checked first; if one cell
    cannot run nothing is queued. Works with an `Idempotency-Key`.
    """
    answer, replayed = service.submit(context, spec, idempotency_key)
    return accepted(answer, f"/v1/studies/{answer['id']}", replayed=replayed)


@router.post(
    "/studies:validate", summary="Check a study without running it", responses=problems(400, 413, 415, 422)
)
@needs(READ)
def validate(context: Ctx, spec: Spec, _json: JsonBody) -> StudyValidation:
    """How many cells there are, how many have their numbers already, and what the rest takes. Nothing is stored."""
    return service.validate(context, spec)


@router.get("/studies", summary="List studies", response_model=StudyPage, responses=problems(400, 422))
def listing(request: Request, context: Ctx, limit: Limit = 50, cursor: Cursor = None) -> Response:
    """One page of studies, the newest first. Follow `next`, or the `Link` header, for more."""
    studies, following = service.listing(context, cursor, limit)
    return paged(request, following, lambda link: StudyPage(studies=studies, next=link))


@router.get(
    "/studies/{study_id}", response_model=StudyOut, summary="How a study stands", responses=problems(404, 422)
)
def get(study_id: str, context: Ctx) -> Response:
    """The request, how many cells are in each state, and how the experiments stand that fill them."""
    return as_json(service.get(context, study_id))


@router.get(
    "/studies/{study_id}/table",
    summary="A study's table",
    response_model=Table,
    responses={200: {"content": TEXTS}, **problems(404, 422)},
)
def table(
    study_id: str,
    context: Ctx,
    accept: Annotated[str | None, Header()] = None,
    format: Annotated[
        Format | None, Query(description="Outweighs the Accept header", examples=["markdown"])
    ] = None,
) -> Response:
    """Attacks x arms: clean accuracy, attack success rate and defense effectiveness, mean and 95 % interval over seeds.

    It can be read at any time. Cells without numbers say why: queued, running, failed, canceled or missing.
    As CSV there is one line for each attack and arm; Markdown, LaTeX (booktabs) and HTML are for pages, in percent.
    """
    kind = pages.chosen(format, accept)
    text = pages.WRITERS[kind](service.table(context, study_id))
    return Response(text, media_type=MEDIA_TYPES[kind], headers={"Vary": "Accept"})


@router.post(
    "/studies/{study_id}:extend",
    status_code=202,
    response_model=StudyOut,
    summary="Add to a study",
    responses=problems(400, 404, 413, 415, 422),
)
def extend(study_id: str, context: Ctx, more: More, _json: JsonBody) -> Response:
    """Add attacks, defenses or seeds, and queue only what is missing. What is in the study already is left as it is,
    so sending the same twice does no harm."""
    return as_json(service.extend(context, study_id, more), status=202)


@router.post(
    "/studies/{study_id}:cancel",
    status_code=202,
    response_model=StudyOut,
    summary="Cancel a study",
    responses=problems(404, 422),
)
def cancel(study_id: str, context: Ctx) -> Response:
    """Cancel the experiments that this study submitted and that have not ended. Numbers that are there stay."""
    return as_json(service.cancel(context, study_id), status=202)


@router.post(
    "/studies/{study_id}:retry",
    status_code=202,
    response_model=StudyOut,
    summary="Retry a study's failed cells",
    responses=problems(404, 422),
)
def retry(study_id: str, context: Ctx, state: RetryStates = None) -> Response:
    """Queue the experiments again that failed, or in which an arm failed; with `state=canceled` those that were
    canceled. Arms and stages that are done are not computed again."""
    return as_json(service.retry(context, study_id, state or ["failed"]), status=202)


@router.delete(
    "/studies/{study_id}", status_code=204, summary="Delete a study", responses=problems(404, 409, 422)
)
def remove(study_id: str, context: Ctx) -> None:
    """Delete a study and the experiments that it submitted, unless another sweep or study uses them too."""
    service.remove(context, study_id)
