"""Llama 3, written to be read.

>>> from llama3 import Llama
>>> llama = Llama.load()
>>> llama.chat([{"role": "user", "content": "What is RoPE?"}]).text
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from llama3.completion import Completion, Piece, Usage
    from llama3.config import ModelConfig
    from llama3.errors import (
        CheckpointError,
        ContractError,
        DeviceError,
        DownloadError,
        GrammarError,
        Llama3Error,
        LogitsError,
        RequestError,
        TokenizerError,
    )
    from llama3.llama import Llama
    from llama3.sampling_params import SamplingParams
    from llama3.stream import Stream
    from llama3.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "Completion",
    "ContractError",
    "DeviceError",
    "DownloadError",
    "GrammarError",
    "Llama",
    "Llama3Error",
    "LogitsError",
    "ModelConfig",
    "Piece",
    "RequestError",
    "SamplingParams",
    "Stream",
    "Tokenizer",
    "TokenizerError",
    "Usage",
]
_MODULES = {"ModelConfig": "config", "SamplingParams": "sampling_params", "Stream": "stream", "Tokenizer": "tokenizer"}
_MODULES |= dict.fromkeys(("Completion", "Piece", "Usage"), "completion")
_MODULES |= {name: "errors" for name in __all__ if name.endswith("Error")}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562): the command line then answers --help and Ctrl-C at once."""
    if name not in __all__:
        raise AttributeError(f"module 'llama3' has no attribute {name!r}")
    globals()[name] = value = getattr(import_module(f"llama3.{_MODULES.get(name, 'llama')}"), name)
    return value
