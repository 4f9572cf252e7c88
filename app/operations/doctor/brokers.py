"""The broker: it answers, keeps its messages, and drops none for want of memory."""

from collections.abc import Iterator
from typing import Any
from urllib.parse import unquote, urlsplit

from app.core.broker import CHECKS, INTERACTIVE, Broker
from app.operations.doctor.findings import Finding, Patient, error, ok, reason, shown_url, warning
from app.specs.placement import KINDS
from app.team.addresses import is_loopback

SCHEMES = ("redis", "rediss", "redis+socket", "sentinel")
SECONDS = 3.0
MENDS = {
    "wrongpass": "correct user and password in BDLAB_BROKER_URL",
    "invalid username": "correct user and password in BDLAB_BROKER_URL",
    "authentication": "put the password into BDLAB_BROKER_URL: redis://:password@host:6379/0",
    "noauth": "put the password into BDLAB_BROKER_URL: redis://:password@host:6379/0",
    "certificate": "trust its certificate here, or add ?ssl_cert_reqs=none if the network is your own",
    "loading": "it reads its file; wait",
}


def broker(patient: Patient) -> Iterator[Finding]:
    """Everything about it."""
    url, embedded = patient.settings.broker, not patient.settings.broker_url
    scheme = url.partition(":")[0]
    if scheme not in SCHEMES:
        yield error(
            "broker",
            f"{scheme!r} in BDLAB_BROKER_URL: the broker must speak the Redis protocol",
            "set it as in redis://host:6379/0",
        )
        return
    name = "the embedded Valkey" if embedded else shown_url(url)
    try:
        waiting = _waiting(url)
    except Exception as fault:  # a URL that is wrong in its own way breaks in its own way
        why = reason(fault.__cause__ or fault, url)
        if embedded and not patient.up:
            yield warning("broker", f"{name} does not run", "bdlab up starts it")
        elif embedded:
            log = patient.settings.home_dir / "logs" / "broker.log"
            yield error("broker", f"{name} does not answer: {why}", f"see {log}")
        else:
            mend = next((mend for sign, mend in MENDS.items() if sign in why.lower()), None)
            mend = mend or "start the server there, or correct BDLAB_BROKER_URL"
            yield error("broker", f"{name}: {why}", mend)
        return
    queues = ", ".join(f"{queue} {count}" for queue, count in waiting.items())
    yield ok("broker", f"{name} answers; messages wait: {queues}")
    if scheme != "sentinel":
        yield from _server(url)
    yield from _way(url)


def _waiting(url: str) -> dict[str, int]:
    """What waits in each queue, asked as the service does."""
    connection = Broker(url)
    try:
        return {queue: connection.pending(queue) for queue in (*KINDS, INTERACTIVE, CHECKS)}
    finally:
        connection.close()


def _server(url: str) -> Iterator[Finding]:
    import redis  # noqa: PLC0415  # only this check needs it

    local = url.startswith("redis+socket://")
    target = f"unix://{unquote(url.removeprefix('redis+socket://'))}" if local else url
    client = redis.Redis.from_url(target, socket_timeout=SECONDS, socket_connect_timeout=SECONDS)
    try:
        facts: dict[str, Any] = client.info()
    except redis.RedisError as fault:
        yield warning(
            "broker", f"it does not tell about itself: {reason(fault, url)}", "allow INFO to this user"
        )
        return
    finally:
        client.close()
    kind = facts.get("server_name") or "redis"
    version = facts.get("valkey_version") or facts.get("redis_version")
    policy, most = facts.get("maxmemory_policy", "noeviction"), int(facts.get("maxmemory", 0))
    if policy != "noeviction" and most:
        yield error(
            "broker",
            f"{kind} {version} may drop messages when it has {most} bytes ({policy})",
            "set maxmemory-policy noeviction",
        )
    else:
        yield ok("broker", f"{kind} {version} drops nothing")
    if not int(facts.get("aof_enabled", 0)):
        yield warning(
            "broker",
            "it has no append-only file: what waits is lost when it ends, and sent again after BDLAB_REPUBLISH_SECONDS",
            "set appendonly yes",
        )
    elif facts.get("aof_last_write_status") != "ok":
        yield error(
            "broker", "its last write to the append-only file failed", "see its log; is its disk full?"
        )
    else:
        yield ok("broker", "messages are kept in an append-only file")


def _way(url: str) -> Iterator[Finding]:
    parts = urlsplit(url)
    if parts.scheme == "redis" and parts.hostname and not is_loopback(parts.hostname) and not parts.password:
        yield warning(
            "broker",
            f"there is no password: whoever reaches {parts.hostname} can give the workers tasks",
            "set requirepass there and the password in BDLAB_BROKER_URL, unless the network is the service's own",
        )
