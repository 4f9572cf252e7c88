"""`bdlab workers`."""

from typing import Any

from bdlab.commands.common import AsJson, Url, connect, err, out, print_json
from bdlab.commands.tables import plain

GIBIBYTE = 2**30


def workers(url: Url = None, as_json: AsJson = False) -> None:
    """List the workers and the queues."""
    with connect(url) as client:
        found = client.workers()
    if as_json:
        print_json(found)
        return
    rows = [
        (
            worker["name"],
            worker["state"],
            worker["experiment_id"] or "-",
            worker["device"]["name"],
            _filled(worker["memory"], "device"),
            _filled(worker["memory"], "host"),
            worker["version"] or "-",
            f"{worker['seconds_since_sign']:.0f} s ago",
        )
        for worker in found["workers"]
    ]
    headings = ["name", "state", "experiment", "device", "its GiB", "host's GiB", "version", "seen"]
    out.print(plain("Workers", headings, rows))
    out.print(
        plain("Queues", ["queue", "waiting", "running", "workers", "oldest"], map(_queue, found["queues"]))
    )
    for warning in found["warnings"]:
        err.print(warning)


def _queue(queue: dict[str, Any]) -> tuple[object, ...]:
    numbers = (queue[key] if queue[key] is not None else "-" for key in ("waiting", "running", "workers"))
    oldest = queue["oldest_seconds"]
    return (queue["name"], *numbers, f"{oldest:.0f} s" if oldest is not None else "-")


def _filled(memory: dict[str, int | None], what: str) -> str:
    used, total = memory[f"{what}_used"], memory[f"{what}_total"]
    return (
        f"{used / GIBIBYTE:.1f} of {total / GIBIBYTE:.1f}" if used is not None and total is not None else "-"
    )
