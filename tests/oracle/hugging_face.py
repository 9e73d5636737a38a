"""Llama 3's tokenizer in Hugging Face's library, which transformers converts from Meta's file."""

from functools import cache

from tokenizers import Tokenizer
from transformers.convert_slow_tokenizer import TikTokenConverter

from llama3.tokenizer_file import LLAMA3_SPECIAL
from tests import real_vocabulary as real


@cache
def tokenizer_json() -> str:
    converter = TikTokenConverter(vocab_file=str(real.file()), extra_special_tokens=list(LLAMA3_SPECIAL))
    return str(converter.converted().to_str())


@cache
def tokenizer() -> Tokenizer:
    return Tokenizer.from_str(tokenizer_json())
