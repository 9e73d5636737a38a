"""How much one request may bring. A server changes them once, at its start: `llama3 serve --limit tools=256`."""

from dataclasses import dataclass


@dataclass
class Limits:
    header_bytes: int = 16 * 1024  # of all headers
    body_bytes: int = 1 << 20
    schema_bytes: int = 64 * 1024  # of one JSON Schema, written as JSON
    tools: int = 128
    messages: int = 1024
    stops: int = 16  # stop strings
    seconds: int = 10  # for a request to arrive
    unread_seconds: int = 60  # for a reader that has stopped to go on


LIMITS = Limits()
