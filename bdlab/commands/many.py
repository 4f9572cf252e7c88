"""What `bdlab sweep` and `bdlab study` have in common: a file submits, and experiments are followed together."""

from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from bdlab.base_client import Client
from bdlab.commands.common import FAILED, OK, err, print_json
from bdlab.sweeps import Studies, Sweeps

States = Annotated[
    list[str] | None, typer.Option("--state", help="failed (the default) or canceled; may be repeated.")
]
Show = Callable[[Client, str], None]


class SubmitsFiles(TyperGroup):
    """A group in which `bdlab sweep FILE` is short for `bdlab sweep submit FILE`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] != "--help":
            args = ["submit", *args]
        return super().parse_args(ctx, args)


def follow(client: Client, many: Sweeps | Studies, id: str, show: Show, *, as_json: bool) -> int:
    """Tell how it goes until every experiment has ended, then ``show`` the numbers; returns the exit code."""
    last = ""

    def tell(found: dict[str, Any]) -> None:
        nonlocal last
        line = standing(found)
        if line != last:
            err.print(line, markup=False)
        last = line

    ended = many.wait(id, on_progress=None if as_json else tell)
    if as_json:
        print_json(ended)
    else:
        show(client, id)
    return OK if ended["status"] == "succeeded" else FAILED


def standing(found: dict[str, Any]) -> str:
    """Such as `running, 42 %: 1 running, 3 succeeded`."""
    counts = ", ".join(f"{count} {state}" for state, count in found["experiments"].items() if count)
    return f"{found['status']}, {100 * found['fraction']:.0f} %" + (f": {counts}" if counts else "")
