"""What all pages share: the policy they are served under, the templates, and errors that people can read."""

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

HERE = Path(__file__).parent
STATIC = HERE / "static"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
"""Nothing from elsewhere and nothing inline. ``blob:`` are the pictures that previews and predictions answer with."""
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@cache
def environment() -> "Environment":
    """The templates; an undefined name in one is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415  # the API alone needs none

    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(filters.FILTERS)
    return made


def page(
    request: Request, template: str, status: int = 200, policy: str = POLICY, **values: Any
) -> HTMLResponse:
    """``template`` with ``values`` as an answer under the content-security policy."""
    here = request.url.path
    text = environment().get_template(template).render(path=here, section=_section(here), **values)
    return HTMLResponse(text, status_code=status, headers=HEADERS | {"Content-Security-Policy": policy})


def _section(path: str) -> str:
    """The page of the main menu to which the page at ``path`` belongs."""
    first = "/" + path.split("/")[1]
    return {"/experiments": "/", "/compare": "/", "/studies": "/sweeps"}.get(first, first)


class Static(StaticFiles):
    """The pages' own files. Browsers keep them, but ask before each use, so that a new version is seen at once."""

    def file_response(self, *args: Any, **kwargs: Any) -> Response:
        response = super().file_response(*args, **kwargs)
        response.headers["Cache-Control"] = "no-cache"
        return response


class PageRoute(APIRoute):
    """A route whose refusals are pages, not problem+json."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_or_explain(request: Request) -> Response:
            try:
                return await handle(request)
            except OUTAGES as outage:
                error = UnavailableError(str(outage).partition("\n")[0])
                status, detail, headers = int(error.status), error.detail, error.headers
            except AppError as error:
                status, detail, headers = int(error.status), error.detail, error.headers
            except RequestValidationError as error:
                status, detail, headers = 422, summary(field_errors(error.errors(), None)), {}
            answer = page(request, "error.html", status=status, code=status, detail=detail)
            answer.headers.update(headers)
            return answer

        return handle_or_explain
