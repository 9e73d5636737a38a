"""A network with no interface but loopback, for the Ray clusters of these tests.

Ray's processes listen on all interfaces, whatever address they are given. In such a network nobody else reaches them.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pytest

SKIP = "this user may not make a network namespace (unshare --net), which these tests need to keep Ray to themselves"


class Loopback:
    """Programs that are started by `command` see this network only. It ends with the `with` block."""

    def __init__(self) -> None:
        self.as_root = os.geteuid() == 0
        user = [] if self.as_root else ["--user", "--map-root-user"]
        self.holder = subprocess.Popen(
            ["unshare", "--net", *user, "sh", "-c", "ip link set lo up && echo up && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self.holder.stdout
        if self.holder.stdout.readline() != b"up\n":
            self.close()
            raise PermissionError(SKIP)

    def __enter__(self) -> "Loopback":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        assert self.holder.stdin and self.holder.stdout
        self.holder.stdin.close()
        self.holder.wait()
        self.holder.stdout.close()

    def command(self, *argv: str) -> list[str]:
        """The command that runs `argv` in this network."""
        user = [] if self.as_root else ["--user", "--preserve-credentials"]
        return ["nsenter", f"--target={self.holder.pid}", "--net", *user, *argv]

    def processes(self, name: str) -> list[int]:
        """The ids of this network's processes whose command line begins with `name`."""
        mine, found = os.readlink(f"/proc/{self.holder.pid}/ns/net"), []
        for process in Path("/proc").glob("[0-9]*"):
            try:
                if os.readlink(process / "ns/net") == mine and (process / "cmdline").read_text().startswith(name):
                    found.append(int(process.name))
            except OSError:
                pass  # it has ended
        return found


@contextmanager
def loopback_or_skip() -> Iterator[Loopback]:
    """Such a network; the test is skipped where this user may not make one."""
    try:
        network = Loopback()
    except OSError:  # also if a program is missing
        pytest.skip(SKIP)
    with network:
        yield network
