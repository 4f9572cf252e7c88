"""API latency while training saturates the machine.

Starts `bdlab up` in a temporary folder. 20 pollers each request one experiment twice a second, as dashboards
and scripts do: first with nothing running, then while a ResNet-18 trains on all cores. Prints the median, the
99th percentile and the ratio to idle; exits 1 if the 99th percentile under load is above the target.
"""

import http.client
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

POLLERS, SECONDS, INTERVAL = 20, 20.0, 0.5
TARGET_MS = 100.0
SPEC = {
    "name": "latency benchmark",
    "dataset": {"name": "digits"},
    "model": {"name": "resnet18"},
    "training": {"epochs": 500},
}


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        command = [Path(sys.executable).parent / "bdlab", "up", "--port", "0"]
        service = subprocess.Popen(
            command, env=os.environ | {"BDLAB_HOME": str(home)}, stdout=subprocess.DEVNULL
        )
        try:
            address = home / "address"
            wait(lambda: address.exists() or service.poll() is not None, 120)
            url = urlsplit(address.read_text().strip())
            return measure(url.netloc)
        finally:
            service.send_signal(signal.SIGINT)
            service.wait()


def measure(host: str) -> int:
    queued = request(host, "POST", "/v1/experiments", SPEC)
    path = f"/v1/experiments/{queued['id']}"
    request(host, "POST", f"{path}:cancel")
    wait(lambda: request(host, "GET", path)["status"] == "canceled", 60)
    idle = poll(host, path)
    busy = request(host, "POST", "/v1/experiments", SPEC)
    path = f"/v1/experiments/{busy['id']}"
    wait(lambda: request(host, "GET", path)["progress"].get("stage") == "victim", 120)
    loaded = poll(host, path)
    assert request(host, "GET", path)["status"] == "running", "the training ended before the measurement"
    request(host, "POST", f"{path}:cancel")
    print(f"GET {path[:15]}/{{id}}, {POLLERS} pollers, {1 / INTERVAL:.0f}/s each, {os.cpu_count()} cores")
    for name, times in (("idle", idle), ("training", loaded)):
        print(
            f"{name:9} {len(times):6} requests  p50 {at(times, 0.5):6.1f} ms  p99 {at(times, 0.99):6.1f} ms"
        )
    print(f"ratio     p50 {at(loaded, 0.5) / at(idle, 0.5):.1f}, p99 {at(loaded, 0.99) / at(idle, 0.99):.1f}")
    return int(at(loaded, 0.99) > TARGET_MS)


def poll(host: str, path: str) -> list[float]:
    """Latencies of all pollers' requests in milliseconds, sorted."""
    times: list[float] = []

    def one(start: float) -> None:
        connection = http.client.HTTPConnection(host, timeout=30)
        end = start + SECONDS
        while start < end:
            time.sleep(max(0.0, start - time.monotonic()))
            asked = time.perf_counter()
            connection.request("GET", path)
            answer = connection.getresponse()
            answer.read()
            times.append(1000 * (time.perf_counter() - asked))
            assert answer.status == 200, answer.status
            start += INTERVAL
        connection.close()

    now = time.monotonic()
    threads = [threading.Thread(target=one, args=(now + i * INTERVAL / POLLERS,)) for i in range(POLLERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(times) == POLLERS * round(SECONDS / INTERVAL), "a poller failed"
    return sorted(times)


def request(host: str, method: str, path: str, body: Any = None) -> Any:
    connection = http.client.HTTPConnection(host, timeout=30)
    data = json.dumps(body) if body is not None else None
    connection.request(method, path, data, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    text = answer.read()
    assert answer.status < 300, (answer.status, text)
    connection.close()
    return json.loads(text)


def wait(happened: Any, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        if time.monotonic() > deadline:
            raise TimeoutError(f"timed out after {seconds:.0f} s")
        time.sleep(0.1)


def at(times: list[float], share: float) -> float:
    return times[min(len(times) - 1, int(share * len(times)))]


if __name__ == "__main__":
    raise SystemExit(main())
