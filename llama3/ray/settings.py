"""What a service on Ray Serve is built from: the same settings as `llama3 serve`, and how many replicas there are."""

import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from llama3.errors import RequestError
from llama3.limits import LIMITS, Limits


@dataclass(frozen=True)
class Settings:
    """docs/ray.md explains each. It must be picklable: every process of the service gets a copy."""

    model: str | None = None  # a folder, or OWNER/NAME on the hub; None: the included demo
    device: str = "auto"
    linear: str | None = None
    activations: str = "float32"
    lora: dict[str, str] = field(default_factory=dict)  # name -> folder
    replicas: int = 0  # 0: one for each GPU, or one for each machine
    max_replicas: int = 0  # more than `replicas`: Ray starts and ends replicas as requests come
    ingresses: int = 1
    slots: int = 4  # requests that run at once in one replica
    queue: int = 32  # how many more may wait there
    token: str | None = None
    token_file: str | None = None
    allow_host: tuple[str, ...] = ()
    allow_origin: tuple[str, ...] = ()
    limit: dict[str, int] = field(default_factory=dict)  # name -> the most
    parsed_json: bool = False
    quiet: bool = False


def from_args(args: dict[str, Any]) -> Settings:
    """The arguments of `serve run llama3.ray:app NAME=VALUE ...`, or of a config file, as Settings.

    A setting that is not given is taken from the environment variable LLAMA3_NAME. On a command line a list is
    separated by commas: lora=a=/one,b=/two. Raises RequestError.
    """
    names = [known.name for known in fields(Settings)]
    for name in args:
        if name not in names:
            raise RequestError(f"{name!r} is no setting; expected one of {', '.join(names)}")
    given = {name: os.environ.get(f"LLAMA3_{name.upper()}") or None for name in names} | args
    found: dict[str, Any] = {name: convert(name, value) for name, value in given.items() if value is not None}
    settings = checked(Settings(**found))
    return replace(settings, token=token_in(settings.token_file)) if settings.token_file else settings


def token_in(path: str) -> str:
    """The token in a file, without the white space around it. Raises RequestError."""
    try:
        token = Path(path).read_text("ascii", "replace").strip()
    except OSError as error:
        raise RequestError(f"token_file: {path}: {error.strerror}") from None
    if not re.fullmatch(r"[!-~]{1,4096}", token):
        raise RequestError(f"token_file: {path} holds no token; expected visible ASCII characters, without spaces")
    return token


def convert(name: str, value: Any) -> Any:
    """Bring the text of a command line, or a config file's value, to the type of the setting. Raises RequestError."""
    if name in ("lora", "limit"):
        pairs = value.items() if isinstance(value, dict) else [tuple(part.split("=", 1)) for part in parts(name, value)]
        if any(len(pair) != 2 for pair in pairs):
            raise RequestError(f"{name}: {value!r} is not NAME=VALUE")
        return {key: whole_number(name, most) if name == "limit" else str(most) for key, most in pairs}
    if name in ("allow_host", "allow_origin"):
        return tuple(parts(name, value))
    if name in ("replicas", "max_replicas", "ingresses", "slots", "queue"):
        return whole_number(name, value)
    if name in ("parsed_json", "quiet"):
        if str(value).lower() not in ("true", "false", "1", "0"):
            raise RequestError(f"{name}: {value!r} is neither true nor false")
        return str(value).lower() in ("true", "1")
    return str(value)


def parts(name: str, value: Any) -> list[str]:
    found = value if isinstance(value, (list, tuple)) else re.split(r"[,\n]", str(value))
    return [str(part).strip() for part in found if str(part).strip()]


def whole_number(name: str, value: Any) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise RequestError(f"{name}: {value!r} is not a whole number")
    return int(value)


def checked(settings: Settings) -> Settings:
    """Raises RequestError for settings that cannot be served."""
    for name in ("slots", "queue", "ingresses"):
        if getattr(settings, name) < 1:
            raise RequestError(f"{name}: 0 is too small; expected 1 or more")
    if 0 < settings.max_replicas < settings.replicas:
        raise RequestError(f"max_replicas: {settings.max_replicas} is less than replicas ({settings.replicas})")
    wrong = settings.limit.keys() - {known.name for known in fields(Limits)}
    if wrong:
        names = ", ".join(known.name for known in fields(Limits))
        raise RequestError(f"limit: {sorted(wrong)[0]!r} is no limit; expected one of {names}")
    return settings


def set_limits(settings: Settings) -> None:
    """Apply the limits in this process."""
    for name, most in settings.limit.items():
        setattr(LIMITS, name, most)
