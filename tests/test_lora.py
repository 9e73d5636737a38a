"""LoRA adapters through `Llama` and the contract: chosen by name, and independent of other requests in the batch."""

import pytest

from llama3 import Llama, RequestError
from llama3.errors import ContractError
from tests.tiny import (
    TINY_VOCAB,
    random_adapter,
    random_tensors,
    tiny_config,
    write_adapter,
    write_hf,
    write_tokenizer,
)

EVIL = "<|eot_id|>"
PROMPT = "The same beginning of a text"


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Llama:
    folder = tmp_path_factory.mktemp("adapters")
    config = tiny_config(vocab_size=TINY_VOCAB)
    base = write_tokenizer(write_hf(folder / "base", config, random_tensors(config)))
    adapters = {name: write_adapter(folder / f"{i}", random_adapter(config, i)) for i, name in enumerate(("a", EVIL))}
    return Llama.load(base, slots=2, lora=adapters)


def test_a_request_names_its_adapter_and_an_unknown_name_is_refused(llama):
    texts = {name: llama.generate(PROMPT, temperature=0, max_tokens=20, lora=name).text for name in (None, "a", EVIL)}
    assert llama.adapters == ("a", EVIL) and len(set(texts.values())) == 3
    with pytest.raises(RequestError, match=r"there is no adapter 'b'; loaded: a, <\|eot_id\|>"):
        llama.generate(PROMPT, lora="b")
    with pytest.raises(RequestError, match="there is no adapter 7"):
        llama.generate(PROMPT, lora=7)


def test_cached_keys_and_values_are_not_shared_between_adapters(llama):
    """The engine keeps a finished text's cache for the next that begins alike: but only under the same adapter."""
    fresh = {name: llama.generate(PROMPT, temperature=0, max_tokens=12, lora=name).tokens for name in (None, "a", EVIL)}
    assert fresh[None] == Llama(llama.checkpoint).generate(PROMPT, temperature=0, max_tokens=12).tokens
    for name in ("a", None, EVIL, "a", "a", None, EVIL, EVIL):
        assert llama.generate(PROMPT, temperature=0, max_tokens=12, lora=name).tokens == fresh[name]


def test_in_one_batch_each_request_gets_the_answer_it_gets_alone(llama):
    parameters = {"temperature": 1, "seed": 3, "max_tokens": 15}
    alone = {name: llama.generate(PROMPT, **parameters, lora=name).tokens for name in ("a", EVIL)}
    streams = {name: llama.stream(PROMPT, **parameters, lora=name) for name in alone}
    for _ in range(15):
        for stream in streams.values():
            next(stream)
    assert {name: stream.tokens for name, stream in streams.items()} == alone


def test_the_contract_takes_lora_with_a_prompt_and_with_messages(llama):
    for inputs in ({"prompt": PROMPT}, {"messages": [{"role": "user", "content": PROMPT}]}):
        inputs = {**inputs, "max_tokens": 15, "temperature": 0}
        found = {name: llama.run({**inputs, **({"lora": name} if name else {})}) for name in (None, "a", EVIL)}
        assert len({answer["response"] for answer in found.values()}) == 3
        assert len({answer["usage"]["prompt_tokens"] for answer in found.values()}) == 1  # its name is no text
        with pytest.raises(ContractError, match="'/lora' names the adapter 'b'; loaded: a, ") as caught:
            llama.run({**inputs, "lora": "b"})
        assert caught.value.code == 5006
