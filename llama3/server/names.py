"""Parse the host names and origins in the headers Host and Origin."""

import ipaddress
import re

AUTHORITY = re.compile(r"(?:\[(?P<ip>[0-9A-Fa-f:.]+)\]|(?P<name>[0-9A-Za-z._-]+))(?::(?P<port>[0-9]{0,5}))?")
ORIGIN = re.compile(r"(?P<scheme>[A-Za-z][0-9A-Za-z+.-]*)://(?P<authority>.+)")
DEFAULT_PORTS = {"http": "80", "https": "443"}


def host_name(authority: str) -> str | None:
    """The name in a Host header, in lower case and without its port: "[::1]:8000" -> "::1". None if it is malformed."""
    found = AUTHORITY.fullmatch(authority)
    if not found:
        return None
    if found["name"]:
        return found["name"].lower()
    try:
        return ipaddress.IPv6Address(found["ip"]).compressed
    except ValueError:
        return None


def host_of_origin(origin: str) -> str | None:
    """The host name of an Origin header: "http://localhost:3000" -> "localhost". None if it is malformed."""
    found = ORIGIN.fullmatch(origin)
    return host_name(found["authority"]) if found else None


def origin_of(address: str) -> str | None:
    """An origin as browsers send it: "https://A.example:443/" -> "https://a.example". None if it is malformed."""
    found = ORIGIN.fullmatch(address.removesuffix("/"))
    name = host_name(found["authority"]) if found else None
    authority = AUTHORITY.fullmatch(found["authority"]) if found else None
    if found is None or authority is None or name is None:
        return None
    scheme, port = found["scheme"].lower(), authority["port"]
    name = f"[{name}]" if ":" in name else name
    return f"{scheme}://{name}" + (f":{port}" if port and port != DEFAULT_PORTS.get(scheme) else "")
