"""POST /v1/previews and .../predict."""

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response
from pydantic import ValidationError
from starlette.datastructures import UploadFile

from app.core.context import Ctx
from app.core.errors import InvalidError, MediaTypeError
from app.core.openapi import problems
from app.core.routing import JsonBody, read_json
from app.core.security import READ, needs
from app.core.validation import field_errors
from app.experiments.interactive import service
from app.experiments.interactive.schemas import Prediction, PredictRequest, PreviewRequest
from app.specs.pictures import ALLOWED

router = APIRouter(prefix="/v1", tags=["interactive"])

PREVIEWS: dict[str, Any] = {
    "badnets": {
        "summary": "A white square on digits",
        "value": {
            "dataset": {"name": "digits"},
            "attack": {"name": "badnets", "size": 2, "pattern": "white"},
        },
    }
}
UPLOAD: dict[str, Any] = {
    "type": "object",
    "properties": {
        "image": {"type": "string", "format": "binary", "description": f"A picture: {ALLOWED}."},
        "index": {
            "type": "integer",
            "minimum": 0,
            "description": "Instead of an image: index in the test set.",
        },
        "triggered": {"type": "boolean", "default": False},
        "seed": {"type": "integer", "minimum": 0},
    },
}
PREDICT_BODY: dict[str, Any] = {
    "required": True,
    "content": {
        "application/json": {
            "schema": PredictRequest.model_json_schema(),
            "examples": {
                "triggered": {
                    "summary": "The first test image, with the trigger",
                    "value": {"index": 0, "triggered": True, "seed": 0},
                }
            },
        },
        "multipart/form-data": {"schema": UPLOAD},
    },
}

ANSWER: dict[str, Any] = {
    "image": {"index": 0, "label": 5, "label_name": "5"},
    "arms": [
        {
            "arm": "strip_inputs",
            "class": 0,
            "class_name": "0",
            "probabilities": [0.982, 0.002, 0.002, 0.002, 0.002, 0.002, 0.002, 0.002, 0.002, 0.002],
            "detection": {"suspicion": -0.041, "threshold": -0.235, "flagged": True},
        }
    ],
    "picture": "iVBORw0KGgo=",
}


@router.post(
    "/previews",
    summary="See a trigger",
    response_class=Response,
    responses={
        200: {
            "description": "Clean, triggered and residual samples.",
            "content": {"image/png": {"schema": {"type": "string", "format": "binary"}}},
        },
        **problems(400, 413, 415, 422, 429, 500, 502, 503),
    },
)
@needs(READ)
async def preview(
    context: Ctx, request: Annotated[PreviewRequest, Body(openapi_examples=PREVIEWS)], _json: JsonBody
) -> Response:
    """A picture of what an attack does to the images of a dataset. Nothing is trained and nothing is stored."""
    return Response(await service.preview(context, request), media_type="image/png")


@router.post(
    "/experiments/{experiment_id}/predict",
    summary="Ask every arm's model",
    response_model=Prediction,
    responses={
        200: {"content": {"application/json": {"example": ANSWER}}},
        **problems(400, 404, 409, 413, 415, 422, 429, 500, 502, 503),
    },
    openapi_extra={"requestBody": PREDICT_BODY},
)
@needs(READ)
async def predict(experiment_id: str, request: Request, context: Ctx) -> dict[str, Any]:
    """Class and probabilities from each arm's model, for an uploaded image or one of the test set.

    Send JSON with `index`, or a form with the file `image`; `triggered` puts the attack's trigger on it. An arm with an
    input detection also has its verdict.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return await service.predict(context, experiment_id, await _from_json(request), None)
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        question, image = await _from_form(request, context.settings.max_image_bytes)
        return await service.predict(context, experiment_id, question, image)
    raise MediaTypeError(f"the body is {kind or 'of no type'}; send application/json or multipart/form-data")


async def _from_json(request: Request) -> PredictRequest:
    return _parse(await read_json(request))


async def _from_form(request: Request, limit: int) -> tuple[PredictRequest, bytes | None]:
    async with request.form(max_files=1, max_fields=8) as form:
        fields: dict[str, Any] = dict(form)
        upload = fields.pop("image", None)
        image = await upload.read() if isinstance(upload, UploadFile) else None
    if upload is not None and image is None:
        raise InvalidError.of("image", upload, "send the image as a file")
    question = _parse(fields)
    if (image is None) == ("index" not in fields):
        raise InvalidError.of("image", None, "send either an image or an index")
    if image is not None:
        service.verify_image(image, limit)
    return question, image


def _parse(body: Any) -> PredictRequest:
    try:
        return PredictRequest.model_validate(body)
    except ValidationError as error:
        located = [{**one, "loc": ("body", *one["loc"])} for one in error.errors()]
        raise InvalidError.of_all(field_errors(located, PredictRequest)) from error
