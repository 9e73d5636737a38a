"""Upper limits for requests and connections. A server sets them when it starts: `llama3 serve --limit tools=256`."""

from dataclasses import dataclass


@dataclass
class Limits:
    header_bytes: int = 16 * 1024  # all headers together
    body_bytes: int = 1 << 20
    schema_bytes: int = 64 * 1024  # one JSON Schema, as JSON text
    tools: int = 128
    messages: int = 1024
    stops: int = 16  # stop strings
    seconds: int = 10  # until the whole request must have arrived
    unread_seconds: int = 60  # how long a client may stop reading an answer
    connections: int = 1000  # open at once; more wait until one is closed


LIMITS = Limits()
