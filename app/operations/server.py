"""The API process under `bdlab up`: uvicorn on an inherited listening socket.

The supervisor keeps the socket open, so clients wait while the API restarts instead of being refused.
"""

import gc
import socket
import sys

import uvicorn

SHUTDOWN_SECONDS = 3


def main(descriptor: int) -> None:
    """Serve on the inherited file descriptor until SIGTERM; open streams then get a few seconds to end."""
    gc.disable()
    config = uvicorn.Config(
        "app.main:create_app",
        factory=True,
        access_log=False,
        proxy_headers=False,  # uvicorn would believe every process of this machine; see BDLAB_PROXIES
        timeout_graceful_shutdown=SHUTDOWN_SECONDS,
    )
    config.load()
    gc.freeze()  # what was imported is never freed, so the collector need not traverse it
    gc.enable()
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]))
