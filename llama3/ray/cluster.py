"""Connect to a Ray cluster, or start one on this machine that ends with the program.

Ray logs much and raises errors of its own. Here its log is off, and each error is one line.
"""

import logging
import os
import platform
import re
import secrets
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from llama3.errors import Llama3Error, RequestError

PATIENCE = 5.0  # seconds for a connection to the head of the cluster
OBJECT_STORE = 128 << 20  # bytes of a cluster of this machine: requests and answers are small
TOKENS = "https://docs.ray.io/en/latest/ray-security/token-auth.html"


def import_ray() -> Any:
    """The module. Raises RequestError if it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise RequestError(f"Ray needs the extra ray ({error.name} is missing): pip install 'llama3[ray]'") from None
    return ray


@contextmanager
def cluster(address: str | None = None) -> Iterator[None]:
    """Connect to a cluster for the time of a `with` block, unless this program is connected already.

    address: "HOST:PORT" of the cluster's head. None or "auto": what the environment variable RAY_ADDRESS says, or else
    the cluster that `ray start` started on this machine, or else a new one of this machine alone, which ends with the
    block. "local": always a new one. Raises RequestError if there is none at the address, or if this program does not
    fit it.
    """
    ray = import_ray()
    if ray.is_initialized():
        yield
        return
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    with ExitStack() as stack:
        found = address_of(address)
        if found is None:
            protect()
            folder = tempfile.TemporaryDirectory(prefix="llama3-", dir=ray_files(), ignore_cleanup_errors=True)
            settings |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE}
            settings["_temp_dir"] = stack.enter_context(folder)
        # Ray would write what it says of lost processes to standard output, among the answers.
        worker = ray._private.worker
        stack.callback(setattr, worker, "print_to_stdstream", worker.print_to_stdstream)
        worker.print_to_stdstream = lambda *args, **settings: None
        try:
            with without_ray_logs():
                # "auto" finds the same cluster, and lets Ray use the token of ~/.ray/auth_token.
                here = found == current_cluster() and "RAY_ADDRESS" not in os.environ
                ray.init("local" if found is None else "auto" if here else found, **settings)
        except Exception as error:  # Ray raises ConnectionError, RuntimeError, ValueError and errors of its own
            ray.shutdown()
            raise explain(error, found) from error
        stack.callback(ray.shutdown)
        yield


@contextmanager
def without_ray_logs() -> Iterator[None]:
    """Drop what Ray's C++ part writes to standard error before it has a file to write to."""
    try:
        kept = os.dup(2)
    except OSError:  # it is closed
        yield
        return
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            others = [line for line in file if not re.match(rb"\[[-0-9]+ [0-9:,]+ [A-Z] \d+ \d+\] ", line)]
            os.write(2, b"".join(others))


def address_of(address: str | None) -> str | None:
    """HOST:PORT of the cluster to connect to; None if there is none, and one is to be started. Raises RequestError."""
    given = address or os.environ.get("RAY_ADDRESS") or "auto"
    if given == "local":
        return None
    if given == "auto":
        running = current_cluster()
        return running if running and why_unreachable(running) is None else None
    check_address(given)
    reason = why_unreachable(given)
    if reason:
        raise RequestError(f"no Ray cluster at {given} ({reason}); expected the address that `ray start --head` showed")
    return given


def check_address(address: str) -> str:
    """Returns it, or raises RequestError if it cannot be the address of a cluster."""
    if not re.fullmatch(r"auto|local|(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}", address):
        raise RequestError(
            f"{address[:100]!r} is no address of a Ray cluster; expected HOST:PORT of its head, such as 10.0.0.1:6379"
        )
    return address


def current_cluster() -> str | None:
    """The address that `ray start` on this machine has left; the cluster may have ended since."""
    try:
        return (ray_files() / "ray" / "ray_current_cluster").read_text().strip() or None
    except OSError:
        return None


def ray_files() -> Path:
    """The folder where Ray puts its own. Its name must be short: it is a part of the paths of sockets."""
    return Path(os.environ.get("RAY_TMPDIR") or ("/tmp" if sys.platform == "darwin" else tempfile.gettempdir()))


def why_unreachable(address: str) -> str | None:
    """Why nothing answers at HOST:PORT; None if something does. Ray itself tries for a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), PATIENCE).close()
    except (OSError, OverflowError, UnicodeError) as error:  # UnicodeError: a name with an empty label, such as a..b
        return getattr(error, "strerror", None) or str(error)
    return None


def protect() -> None:
    """Give a cluster that is to be started a token, without which nobody can use it.

    Its processes listen on all of this machine's interfaces. Ray makes such a token itself, but leaves it in
    ~/.ray/auth_token, for all users to read. A token of the user's own, and RAY_AUTH_MODE=disabled, are left alone.
    """
    own = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if "RAY_AUTH_MODE" not in os.environ and not own and not (Path.home() / ".ray" / "auth_token").exists():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def explain(error: Exception, address: str | None) -> Llama3Error:
    """What went wrong in `ray.init`, as one line."""
    import ray

    text, cause = " ".join(str(error).split()), error.__cause__
    if address is None:
        return Llama3Error(f"Ray did not start on this machine: {text}")
    if "Version mismatch" in text:
        versions = re.search(r"started with: Ray: (\S+) Python: (\S+)", text)
        theirs = f"Ray {versions[1]} and Python {versions[2]}" if versions else "another Ray or Python"
        return RequestError(
            f"the cluster at {address} runs {theirs}, and this program Ray {ray.__version__} and Python "
            f"{platform.python_version()}; expected the same versions on all machines"
        )
    if isinstance(error, ray.exceptions.AuthenticationError) or "AuthenticationError" in str(cause):
        return RequestError(
            f"the cluster at {address} wants a token, or another one: set RAY_AUTH_MODE=token, and copy the head's "
            f"~/.ray/auth_token to this machine ({TOKENS})"
        )
    return RequestError(
        f"no connection to the Ray cluster at {address}: {text[:300]}; this machine must be a part of it: "
        f"`ray start --address={address}`"
    )
