"""The demo, and a tiny model with random weights: each is loaded once for all tests of the server in this process."""

import pytest

from llama3 import Llama
from tests.tiny import TINY_VOCAB, random_tensors, tiny_config, write_hf, write_tokenizer


@pytest.fixture(scope="session")
def demo() -> Llama:
    return Llama.load(slots=4)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Llama:
    config = tiny_config(vocab_size=TINY_VOCAB, max_seq_len=2048)
    folder = write_hf(tmp_path_factory.mktemp("tiny"), config, random_tensors(config))
    return Llama.load(write_tokenizer(folder), slots=4)
