"""What a service on Ray Serve is built from: the same settings as `llama3 serve`, and how many replicas there are."""

import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from llama3.errors import RequestError
from llama3.limits import LIMITS, Limits
from llama3.ray.dispatch import full_path
from llama3.server.names import host_name, origin_of


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
    variables = {name: os.environ.get(f"LLAMA3_{name.upper()}") or None for name in names}
    if {"token", "token_file"} & args.keys():
        variables |= {"token": None, "token_file": None}
    given = variables | args
    found: dict[str, Any] = {name: convert(name, value) for name, value in given.items() if value is not None}
    if {"token", "token_file"} <= found.keys():
        raise RequestError("token and token_file are both set; expected one of them")
    if "token_file" in found:
        found["token"] = token_in(found["token_file"])
    return checked(Settings(**found))


def token_in(path: str) -> str:
    """The token in a file. Raises RequestError."""
    try:
        text = Path(path).read_text("ascii", "replace")
    except OSError as error:
        raise RequestError(f"token_file: {path}: {error.strerror}") from None
    return token_of(f"token_file: {path}", text)


def token_of(name: str, text: str) -> str:
    """A token without the white space around it. Raises RequestError for one that no header can carry."""
    token = text.strip()
    if not re.fullmatch(r"[!-~]{1,4096}", token):
        raise RequestError(f"{name}: no token; expected at most 4096 visible ASCII characters, without spaces")
    return token


def convert(name: str, value: Any) -> Any:
    """Bring the text of a command line, or a config file's value, to the type of the setting. Raises RequestError."""
    if name in ("lora", "limit"):
        pairs = value.items() if isinstance(value, dict) else [tuple(part.split("=", 1)) for part in parts(value)]
        if any(len(pair) != 2 for pair in pairs):
            raise RequestError(f"{name}: {value!r} is not NAME=VALUE")
        return {key: whole_number(name, most) if name == "limit" else str(most) for key, most in pairs}
    if name in ("allow_host", "allow_origin"):
        return tuple(host(part) if name == "allow_host" else origin(part) for part in parts(value))
    if name in ("replicas", "max_replicas", "ingresses", "slots", "queue"):
        return whole_number(name, value)
    if name in ("parsed_json", "quiet"):
        if str(value).lower() not in ("true", "false", "1", "0"):
            raise RequestError(f"{name}: {value!r} is neither true nor false")
        return str(value).lower() in ("true", "1")
    return token_of(name, str(value)) if name == "token" else str(value)


def parts(value: Any) -> list[str]:
    found = value if isinstance(value, (list, tuple)) else re.split(r"[,\n]", str(value))
    return [str(part).strip() for part in found if str(part).strip()]


def host(name: str) -> str:
    """A host name as requests bring it."""
    found = host_name(f"[{name}]" if name.count(":") > 1 and not name.startswith("[") else name)
    if found is None:
        raise RequestError(f"allow_host: {name!r} is no host name; expected one such as llm.example.com")
    return found


def origin(address: str) -> str:
    """An origin as browsers send it."""
    found = origin_of(address)
    if found is None:
        raise RequestError(f"allow_origin: {address!r} is no origin; expected one such as https://a.example")
    return found


def whole_number(name: str, value: Any) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", str(value)):
        raise RequestError(f"{name}: {value!r} is not a whole number")
    return int(value)


def checked(settings: Settings) -> Settings:
    """The settings, with the full paths of folders that are here. Raises RequestError for what cannot be served."""
    for name in ("slots", "queue", "ingresses"):
        if getattr(settings, name) < 1:
            raise RequestError(f"{name}: 0 is too small; expected 1 or more")
    if 0 < settings.max_replicas < settings.replicas:
        raise RequestError(f"max_replicas: {settings.max_replicas} is less than replicas ({settings.replicas})")
    limits = [known.name for known in fields(Limits)]
    for name, most in settings.limit.items():
        if name not in limits:
            raise RequestError(f"limit: {name!r} is no limit; expected one of {', '.join(limits)}")
        if most < 1:
            raise RequestError(f"limit: {name} is 0; expected 1 or more")
    model = None if settings.model is None else str(full_path(settings.model))
    return replace(settings, model=model, lora={name: str(full_path(path)) for name, path in settings.lora.items()})


def set_limits(settings: Settings) -> None:
    """Apply the limits in this process."""
    for name, most in settings.limit.items():
        setattr(LIMITS, name, most)
