"""`bdlab workers`."""

from typing import Any

from bdlab.commands.common import AsJson, Url, connect, err, out, print_json
from bdlab.commands.tables import text_table

GIBIBYTE = 2**30
WORKER_HEADINGS = ("name", "state", "experiment", "device", "device GiB", "host GiB", "version", "seen")
QUEUE_HEADINGS = ("queue", "waiting", "running", "workers", "oldest")


def workers(url: Url = None, as_json: AsJson = False) -> None:
    """List the workers and the queues."""
    with connect(url) as client:
        fleet = client.workers()
    if as_json:
        print_json(fleet)
        return
    out.print(text_table("Workers", WORKER_HEADINGS, map(_worker_row, fleet["workers"])))
    out.print(text_table("Queues", QUEUE_HEADINGS, map(_queue_row, fleet["queues"])))
    for warning in fleet["warnings"]:
        err.print(warning)


def _worker_row(worker: dict[str, Any]) -> tuple[object, ...]:
    return (
        worker["name"],
        worker["state"],
        worker["experiment_id"] or "-",
        worker["device"]["name"],
        _memory(worker["memory"], "device"),
        _memory(worker["memory"], "host"),
        worker["version"] or "-",
        f"{worker['seconds_since_sign']:.0f} s ago",
    )


def _queue_row(queue: dict[str, Any]) -> tuple[object, ...]:
    numbers = (queue[key] if queue[key] is not None else "-" for key in ("waiting", "running", "workers"))
    oldest = queue["oldest_seconds"]
    return (queue["name"], *numbers, f"{oldest:.0f} s" if oldest is not None else "-")


def _memory(memory: dict[str, int | None], part: str) -> str:
    used, total = memory[f"{part}_used"], memory[f"{part}_total"]
    if used is None or total is None:
        return "-"
    return f"{used / GIBIBYTE:.1f} of {total / GIBIBYTE:.1f}"
