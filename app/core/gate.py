"""The gate before every route: who asks, and is it allowed?"""

from fastapi import Request

from app.core.security import Principal, scope_of


async def guard(request: Request) -> None:
    """A dependency of the whole application."""
    if scope_of(request.scope.get("endpoint"), request.method):
        request.scope["principal"] = Principal()
