"""Keep warnings that clients cause from filling the log."""

import logging
import time

SECONDS = 60


class OncePerMinute(logging.Filter):
    """Lets a message pass if none with the same format string has passed in the last minute; its values may differ."""

    def __init__(self) -> None:
        super().__init__()
        self.passed: dict[str, float] = {}  # format string -> time at which it passed

    def filter(self, record: logging.LogRecord) -> bool:
        now = time.monotonic()
        self.passed = {text: when for text, when in self.passed.items() if now - when < SECONDS}
        text = str(record.msg).partition("\n")[0]  # asyncio writes details of the connection below the first line
        if text in self.passed:
            return False
        self.passed[text] = now
        return True


def limit_log() -> None:
    """Let uvicorn and asyncio write each message at most once a minute."""
    for name in ("uvicorn.error", "asyncio"):
        logger = logging.getLogger(name)
        if not any(isinstance(known, OncePerMinute) for known in logger.filters):
            logger.addFilter(OncePerMinute())
