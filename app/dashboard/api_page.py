"""The API reference: Swagger UI, served from this service's own files so that it works offline."""

from fastapi import APIRouter, Request, Response

from app.core.security import public
from app.dashboard.rendering import POLICY, PageRoute, page

router = APIRouter(route_class=PageRoute, include_in_schema=False)
SWAGGER_POLICY = POLICY.replace("img-src 'self' blob:", "img-src 'self' data:").replace(
    "style-src 'self'", "style-src 'self' 'unsafe-inline'"
)
"""Allows the data URLs and inline styles that Swagger UI requires. Scripts are as restricted as on other pages."""


@router.get("/docs")
@public
def docs(request: Request) -> Response:
    """The reference of the JSON API, with forms to try requests."""
    return page(request, "docs.html", policy=SWAGGER_POLICY)
