"""Llama 3, written to be read.

>>> from llama3 import Llama
>>> llama = Llama.load()
>>> llama.chat([{"role": "user", "content": "What is RoPE?"}]).text
"""

from llama3.config import ModelConfig
from llama3.errors import CheckpointError, DownloadError, Llama3Error, RequestError, TokenizerError
from llama3.llama import Completion, Llama, Piece, Stream, Usage
from llama3.sampler import SamplingParams
from llama3.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "Completion",
    "DownloadError",
    "Llama",
    "Llama3Error",
    "ModelConfig",
    "Piece",
    "RequestError",
    "SamplingParams",
    "Stream",
    "Tokenizer",
    "TokenizerError",
    "Usage",
]
