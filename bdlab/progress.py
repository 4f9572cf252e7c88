"""Showing on a console how an experiment comes along: bars where they can move, else a line for each step."""

from importlib.util import find_spec
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

Json = dict[str, Any]


class Lines:
    """A line for every state, stage and warning."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def see(self, type: str, data: Json) -> None:
        """Show an event of the experiment, by its type and data."""
        words = {"state": _state, "progress": _where, "warning": _warning}.get(type)
        line = words(data) if words else ""
        if line and line != self._last:
            percent = f"{100 * data['fraction']:3.0f} %  " if data.get("fraction") is not None else ""
            self._console.print(percent + line, markup=False)
            self._last = line


class Bars:
    """One bar for the whole experiment and one for the stage at work."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._whole = self._progress.add_task("queued", total=1.0, left="")
        self._stage = self._progress.add_task("", total=1.0, left="", visible=False)
        self._at = ""

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def see(self, type: str, data: Json) -> None:
        """Show an event of the experiment, by its type and data."""
        if type == "state":
            self._progress.update(self._whole, description=_state(data))
        elif type == "progress":
            self._move(data)
        elif type == "warning":
            self._progress.console.print(_warning(data), markup=False)

    def _move(self, data: Json) -> None:
        left = data.get("seconds_left")
        text = "" if left is None else f"{left:.0f} s left"
        self._progress.update(self._whole, completed=data.get("fraction") or 0, left=text)
        if _where(data) != self._at:
            self._at = _where(data)
            self._progress.reset(self._stage, description=self._at)  # its clock starts anew
        self._progress.update(
            self._stage,
            completed=data.get("epoch") or 0,
            total=data.get("epochs") or None,
            left=f"epoch {data.get('epoch')} of {data.get('epochs')}",
            visible=True,
        )


def display(console: Console) -> Bars | Lines:
    """Bars on a terminal, and in a notebook that has ipywidgets, without which rich cannot move them; else lines."""
    moving = find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal
    return Bars(console) if moving else Lines(console)


def _state(data: Json) -> str:
    reason = f" ({data['reason']})" if data.get("reason") else ""
    return f"{data.get('status')}{reason}"


def _where(data: Json) -> str:
    seed = f"seed {data['seed']}" if data.get("seed") is not None else ""
    return ", ".join(str(part) for part in (seed, data.get("arm"), data.get("stage")) if part)


def _warning(data: Json) -> str:
    return f"warning: {_where(data)}: {data.get('message')}"
