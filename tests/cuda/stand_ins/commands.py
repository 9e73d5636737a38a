"""Commands that would need the GPU: nvidia-smi, and processes that load a model. They are checked, and answered."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from tests.cuda.stand_ins.card import StandInError

real_run = subprocess.run
SMI = {  # the fields that are asked for, and answers in nvidia-smi's form without a header and without units
    "clocks.sm": "1980", "clocks.mem": "2619", "power.draw": "412.50", "temperature.gpu": "51",
    "clocks_throttle_reasons.active": "0x0000000000000000",
}  # fmt: skip


def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    if command[0] == "nvidia-smi":
        fields = next(arg for arg in command if arg.startswith("--query-gpu=")).partition("=")[2].split(",")
        if not any(arg.startswith("--id=GPU-") for arg in command) or "--format=csv,noheader,nounits" not in command:
            raise StandInError(f"nvidia-smi does not take {command}")
        return subprocess.CompletedProcess(command, 0, ", ".join(SMI[field] for field in fields) + "\n", "")
    if command[0] == sys.executable:
        compile(command[command.index("-c") + 1], "the command", "exec")
        return subprocess.CompletedProcess(command, 0, "1.5 2.5\n", "")
    return real_run(command, **options)


@contextmanager
def installed() -> Iterator[None]:
    with patch("subprocess.run", run):
        yield
