"""The API's own page: Swagger UI from files of this service, so that it works without a network."""

from fastapi import APIRouter, Request, Response

from app.core.security import public
from app.dashboard.rendering import POLICY, PageRoute, page

router = APIRouter(route_class=PageRoute, include_in_schema=False)
SWAGGER_POLICY = POLICY.replace("img-src 'self' blob:", "img-src 'self' data:").replace(
    "style-src 'self'", "style-src 'self' 'unsafe-inline'"
)
"""Swagger UI draws its icons from data URLs and puts styles into its elements; scripts stay as strict as elsewhere."""


@router.get("/docs")
@public
def docs(request: Request) -> Response:
    """The reference of the JSON API, to be read and tried."""
    return page(request, "docs.html", policy=SWAGGER_POLICY)
