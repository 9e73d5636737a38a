"""The errors that llama3 raises. Each message is one line: what was found, what was expected, what to do.

Only the message for a gated repository has two lines: where to accept its licence, and what to do then.
"""


class Llama3Error(Exception):
    """The base class. `except Llama3Error` catches what the input or the machine has caused, but not a bug."""


class CheckpointError(Llama3Error, ValueError):
    """A checkpoint's files are missing or damaged, or do not fit together."""


class TokenizerError(Llama3Error, ValueError):
    """A vocabulary file cannot be read, or token ids do not belong to the vocabulary."""


class RequestError(Llama3Error, ValueError):
    """A prompt, a message or a parameter is not acceptable."""


class ContractError(RequestError):
    """An error of Cloudflare Workers AI, with its code and HTTP status: bad input, no capacity, a failed generation."""

    def __init__(self, message: str, code: int = 5006, status: int = 400):
        super().__init__(message)
        self.code, self.status = code, status


class LogitsError(Llama3Error, ValueError):
    """No token can be chosen from these logits."""


class GrammarError(LogitsError):
    """The grammar engine has given up on a schema in the middle of a text. The schema is the cause, not the model."""


class DownloadError(Llama3Error):
    """A checkpoint could not be downloaded. It is not a ValueError, because the same call may succeed later."""


class DeviceError(Llama3Error, ValueError):
    """There is no such GPU, or it lacks something: a driver, enough memory, a recent enough architecture."""
