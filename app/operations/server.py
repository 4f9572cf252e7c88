"""The API's process under `bdlab up`: uvicorn on a listening socket that it inherits.

The supervisor keeps the socket open, so while the API restarts clients wait a moment instead of being refused.
"""

import gc
import socket
import sys

import uvicorn

PATIENCE_SECONDS = 3


def main(descriptor: int) -> None:
    """Serve on the inherited file descriptor until SIGTERM; streams still open then get a few seconds to end."""
    gc.disable()
    config = uvicorn.Config(
        "app.main:create_app", factory=True, access_log=False, timeout_graceful_shutdown=PATIENCE_SECONDS
    )
    config.load()
    gc.freeze()  # what was imported stays: no need to look through it again and again
    gc.enable()
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    main(int(sys.argv[1]))
