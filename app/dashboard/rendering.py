"""Rendering of pages: the security policy, the templates, static files, and errors as pages."""

from collections.abc import Callable, Coroutine
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

from app.core.errors import OUTAGES, AppError, UnavailableError, summary
from app.core.validation import field_errors
from app.dashboard import filters

if TYPE_CHECKING:
    from jinja2 import Environment

FOLDER = Path(__file__).parent
STATIC = FOLDER / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Only files of this service, and nothing inline. ``blob:`` is for the images of previews and predictions."""
HEADERS = {
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


@cache
def environment() -> "Environment":
    """The templates. An undefined name in a template is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  # only pages need it

    templates = Environment(
        loader=FileSystemLoader(FOLDER / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.filters.update(filters.FILTERS)
    return templates


def page(
    request: Request, template: str, status: int = 200, policy: str = POLICY, **values: Any
) -> HTMLResponse:
    """The response with ``template``, which gets ``values`` and the request's ``path``, ``url`` and ``section``."""
    path = request.url.path
    values |= {"path": path, "url": f"{path}?{request.url.query}", "section": _section(path)}
    text = environment().get_template(template).render(values)
    return HTMLResponse(text, status_code=status, headers=HEADERS | {"Content-Security-Policy": policy})


def _section(path: str) -> str:
    """The entry of the main menu to which the page at ``path`` belongs."""
    first = "/" + path.split("/")[1]
    return {"/experiments": "/", "/compare": "/", "/studies": "/sweeps"}.get(first, first)


class Static(StaticFiles):
    """Static files, which browsers cache but revalidate before each use, so that a new version is used at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


class PageRoute(APIRoute):
    """A route whose errors are pages, not problem+json."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_or_render_error(request: Request) -> Response:
            try:
                return await handle(request)
            except (AppError, *OUTAGES) as failure:
                outage = UnavailableError(str(failure).partition("\n")[0])
                error = failure if isinstance(failure, AppError) else outage
                status, detail, headers = int(error.status), error.detail, error.headers
            except RequestValidationError as error:
                status, detail, headers = 422, summary(field_errors(error.errors(), None)), {}
            response = page(request, "error.html", status=status, code=status, detail=detail)
            response.headers.update(headers)
            return response

        return handle_or_render_error
