"""A saved prompt on the device: the slot holds what was computed, and other slots get copies of it."""

import pytest

from llama3 import CheckpointError, Llama, RequestError
from llama3.config import ModelConfig
from llama3.cuda import device as devices
from llama3.cuda.device import Device
from tests.tiny import random_tensors, write_hf

CONFIG = ModelConfig(128, 2, 4, 1, 64, 192, 515, max_seq_len=160)
PROMPT = [i * 7 % 500 for i in range(50)]


def test_a_prefix_is_reused_by_all_slots_and_belongs_to_its_dtype(device: Device, monkeypatch, tmp_path):
    monkeypatch.setitem(devices.BACKENDS, "cuda", lambda index: device)
    folder = write_hf(tmp_path / "model", CONFIG, random_tensors(CONFIG))
    parameters = {"max_tokens": 4, "temperature": 0}
    llama = Llama.load(folder, device="cuda", slots=2)
    llama.save_prefix(tmp_path / "p", PROMPT)
    expected = [llama.generate([*PROMPT, token], **parameters).tokens for token in (1, 2)]

    llama = Llama.load(folder, device="cuda", slots=2)
    assert llama.load_prefix(tmp_path / "p") == PROMPT
    steps, step = [], llama.model.step
    monkeypatch.setattr(llama.model, "step", lambda batch, *rest: steps.append(batch.counts) or step(batch, *rest))
    streams = [llama.stream([*PROMPT, token], **parameters) for token in (1, 2)]
    assert [stream.completion().tokens for stream in streams] == expected
    assert steps == [(1, 1)]  # of each prompt only the last token is computed; later steps were launched ahead

    with pytest.raises(CheckpointError, match="its keys and values are bfloat16, and this device computes float32"):
        Llama.load(folder).load_prefix(tmp_path / "p")
    with pytest.raises(RequestError, match="works on the device 'cpu' only, and this model is on 'cuda'"):
        llama.generate(PROMPT, logit_bias={1: 1})
