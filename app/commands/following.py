"""Following an experiment to its end: bars on a terminal, lines elsewhere, events as JSON for programs."""

from collections.abc import Iterable
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from app.client import Client
from app.client_types import Event, Experiment
from app.commands.common import FAILED, OK, err, out, print_json
from app.commands.tables import results


def follow(client: Client, id: str, *, as_json: bool) -> int:
    """Show what happens until the experiment has ended, then its results; returns the exit code.

    As JSON: one event a line, then the experiment itself as the last line.
    """
    events = client.events(id)
    if as_json:
        for event in events:
            print_json(event)
    elif err.is_terminal:
        _bars(events)
    else:
        _lines(events)
    experiment = client.experiment(id)
    if as_json:
        print_json(experiment)
    else:
        _show_end(client, experiment)
    return OK if experiment["status"] == "succeeded" else FAILED


def _bars(events: Iterable[Event]) -> None:
    """One bar for the whole experiment and one for the stage at work."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, TextColumn("{task.fields[left]}"), console=err) as progress:
        whole = progress.add_task("queued", total=1.0, left="")
        stage = progress.add_task("", total=1.0, left="", visible=False)
        where = ""
        for event in events:
            data = event["data"]
            if event["type"] == "state":
                progress.update(whole, description=_state(data))
            elif event["type"] == "progress":
                progress.update(
                    whole, completed=data.get("fraction") or 0, left=_left(data.get("seconds_left"))
                )
                if _where(data) != where:
                    where = _where(data)
                    progress.reset(stage, description=where)  # its clock starts anew
                progress.update(
                    stage,
                    completed=data.get("epoch") or 0,
                    total=data.get("epochs") or None,
                    left=f"epoch {data.get('epoch')} of {data.get('epochs')}",
                    visible=True,
                )
            elif event["type"] == "warning":
                progress.console.print(_warning(data))


def _lines(events: Iterable[Event]) -> None:
    """A line for every state, stage and warning."""
    last = ""
    for event in events:
        data = event["data"]
        if event["type"] == "state":
            line = _state(data)
        elif event["type"] == "progress":
            line = _where(data)
        elif event["type"] == "warning":
            line = _warning(data)
        else:
            continue
        if line != last:
            percent = f"{100 * data['fraction']:3.0f} %  " if data.get("fraction") is not None else ""
            err.print(percent + line, markup=False)
        last = line


def _show_end(client: Client, experiment: Experiment) -> None:
    if experiment["status"] == "succeeded":
        out.print(results(client.results(experiment["id"]), experiment["name"]))
        return
    reason = (experiment.get("error") or {}).get("reason")
    err.print(
        f"bdlab: experiment {experiment['id']} {experiment['status']}" + (f": {reason}" if reason else ""),
        markup=False,
    )


def _state(data: dict[str, Any]) -> str:
    reason = f" ({data['reason']})" if data.get("reason") else ""
    return f"{data.get('status')}{reason}"


def _where(data: dict[str, Any]) -> str:
    seed = f"seed {data['seed']}" if data.get("seed") is not None else ""
    return ", ".join(str(part) for part in (seed, data.get("arm"), data.get("stage")) if part)


def _warning(data: dict[str, Any]) -> str:
    return f"warning: {_where(data)}: {data.get('message')}"


def _left(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.0f} s left"
