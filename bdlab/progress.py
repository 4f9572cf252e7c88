"""Progress of an experiment on a console: bars where they can be updated, else a line for each step."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.specs.printable import printable, printable_lines
from bdlab.types import Experiment, Json


class PlainConsole(Console):
    """A console on which the texts of others are only text: no markup, and control characters as escapes."""

    def __init__(self, **options: Any) -> None:
        super().__init__(highlight=False, markup=False, **options)

    def print(self, *objects: Any, **options: Any) -> None:
        super().print(*(printable_lines(o) if isinstance(o, str) else o for o in objects), **options)


class Lines:
    """A line for every state, stage and warning."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last = ""

    def show(self, type: str, data: Json) -> None:
        """Show an event of the experiment, given by its type and data."""
        describe = {"state": _describe_state, "progress": _describe_stage, "warning": _describe_warning}
        line = describe[type](data) if type in describe else ""
        if line and line != self._last:
            percent = f"{100 * data['fraction']:3.0f} %  " if data.get("fraction") is not None else ""
            self._console.print(percent + line, markup=False)
            self._last = line


class Bars:
    """One bar for the whole experiment and one for its current stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._experiment = self._progress.add_task("queued", total=1.0, left="")
        self._stage = self._progress.add_task("", total=1.0, left="", visible=False)
        self._stage_name = ""

    def show(self, type: str, data: Json) -> None:
        """Show an event of the experiment, given by its type and data."""
        if type == "state":
            self._progress.update(self._experiment, description=_describe_state(data))
        elif type == "progress":
            self._update(data)
        elif type == "warning":
            self._progress.console.print(_describe_warning(data), markup=False)

    def _update(self, data: Json) -> None:
        seconds = data.get("seconds_left")
        left = "" if seconds is None else f"{seconds:.0f} s left"
        self._progress.update(self._experiment, completed=data.get("fraction") or 0, left=left)
        if _describe_stage(data) != self._stage_name:
            self._stage_name = _describe_stage(data)
            self._progress.reset(self._stage, description=self._stage_name)  # also resets its clock
        self._progress.update(
            self._stage,
            completed=data.get("epoch") or 0,
            total=data.get("epochs") or None,
            left=f"epoch {data.get('epoch')} of {data.get('epochs')}",
            visible=True,
        )


@contextmanager
def display(console: Console) -> Iterator[Bars | Lines]:
    """Bars on a terminal, and in a notebook with ipywidgets, which rich needs to update them; else lines."""
    can_update = find_spec("ipywidgets") is not None if console.is_jupyter else console.is_terminal
    if not can_update:
        yield Lines(console)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
    )
    with Progress(*columns, console=console) as progress:
        yield Bars(progress)


@contextmanager
def progress_display(progress: bool | None) -> Iterator[Callable[[Experiment], None]]:
    """A function that shows the progress of an experiment on standard error; None: only in a terminal or notebook."""
    console = PlainConsole(stderr=True)
    if progress is None:
        progress = console.is_jupyter or console.is_terminal
    if not progress:
        yield lambda experiment: None
        return
    with display(console) as shown:

        def show(experiment: Experiment) -> None:
            reason = (experiment.get("error") or {}).get("reason")
            shown.show("progress", {**experiment["progress"]})
            shown.show("state", {"status": experiment["status"], "reason": reason})

        yield show


def _describe_state(data: Json) -> str:
    reason = f" ({data['reason']})" if data.get("reason") else ""
    return printable(f"{data.get('status')}{reason}")


def _describe_stage(data: Json) -> str:
    seed = f"seed {data['seed']}" if data.get("seed") is not None else ""
    return printable(", ".join(str(part) for part in (seed, data.get("arm"), data.get("stage")) if part))


def _describe_warning(data: Json) -> str:
    return printable(f"warning: {_describe_stage(data)}: {data.get('message')}")
