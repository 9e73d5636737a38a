"""The errors raised for bad input. Each message is one clear line: what was found, what was expected, what to do.

That of a gated repository is two: where to accept its licence, and what to do then.
"""


class Llama3Error(ValueError):
    """The base class: `except Llama3Error` catches whatever the input, not a bug, has caused."""


class CheckpointError(Llama3Error):
    """A checkpoint's files are missing, damaged or do not fit each other."""


class TokenizerError(Llama3Error):
    """A vocabulary file cannot be read, or token ids do not belong to the vocabulary."""


class RequestError(Llama3Error):
    """A prompt, a message or a parameter is not acceptable."""


class DownloadError(Llama3Error):
    """A checkpoint could not be fetched."""


class DeviceError(Llama3Error):
    """There is no such GPU, or it lacks what is needed: a driver, memory, a recent enough architecture."""


class ContractError(RequestError):
    """An input that Cloudflare Workers AI would refuse: with its code there, and the HTTP status that goes with it."""

    def __init__(self, message: str, code: int = 5006, status: int = 400):
        super().__init__(message)
        self.code, self.status = code, status
