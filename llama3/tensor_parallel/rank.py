"""The process of a rank other than 0: it reads its part of the weights, then runs every step that rank 0 announces.

    python -m llama3.tensor_parallel.rank SOCKET

SOCKET: the number of an open file, which `ranks.py` passes on. The process ends when rank 0 does.
"""

import pickle
import signal
import socket
import sys
from typing import Any

from llama3.checkpoint import load_folder
from llama3.errors import Llama3Error
from llama3.tensor_parallel.channel import COMMAND, FAILED, READY, Channel, Closed, ReadAhead
from llama3.tensor_parallel.ranks import Setup


def main(channel: Channel) -> None:
    _, payload = channel.receive()
    setup: Setup = pickle.loads(payload)
    if setup.kind == "cpu":
        from llama3.tensor_parallel import cpu

        server: Any = cpu.serve(setup, load_folder(setup.folder), channel)
        channel.send(READY)
    else:
        from llama3.tensor_parallel import gpu

        channel = ReadAhead(channel)
        server = gpu.serve(setup, load_folder(setup.folder), channel)  # uploaded, and freed here
    while True:
        kind, payload = channel.receive()
        if kind == COMMAND:  # others belong to a step that rank 0 gave up after this rank had finished it
            server.run(payload)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # rank 0 decides what Ctrl-C means
    to_first = Channel(socket.socket(fileno=int(sys.argv[1])))
    try:
        main(to_first)
    except Closed:
        sys.exit(0)
    except Exception as error:
        message = str(error) if isinstance(error, Llama3Error) else f"{type(error).__name__}: {error}"
        try:
            to_first.send(FAILED, message.encode())
        except Closed:
            sys.exit(0)
        sys.exit(1)
