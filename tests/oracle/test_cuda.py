"""The CUDA path in bfloat16 is closer to float32 than transformers in bfloat16 is."""

import numpy as np
import pytest
import torch
import transformers

from llama3.checkpoint import load_folder
from llama3.cuda.transformer import Transformer
from llama3.cuda.weights import upload_weights
from llama3.model.batch import Batch
from tests.cuda.conftest import emulated, gpu  # noqa: F401
from tests.cuda.test_transformer import CONFIGS
from tests.tiny import random_tensors, write_hf


def errors(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    return np.linalg.norm(found - expected, axis=-1) / np.linalg.norm(expected, axis=-1)


@pytest.mark.parametrize("name", CONFIGS)
def test_its_error_is_at_most_that_of_transformers(emulated, tmp_path, name):  # noqa: F811
    config = CONFIGS[name]
    folder = write_hf(tmp_path, config, random_tensors(config, dtype="bf16"))
    tokens = np.random.RandomState(0).randint(0, config.vocab_size, 70).astype(np.int32)
    theirs = []
    for dtype in (torch.float32, torch.bfloat16):
        model = transformers.LlamaForCausalLM.from_pretrained(folder, dtype=dtype).eval()
        with torch.no_grad():
            theirs.append(model(torch.tensor(tokens[None].astype(np.int64))).logits[0].float().numpy())
    model = Transformer(emulated, config, upload_weights(emulated, load_folder(folder).weights))
    ours = model.forward(Batch.of([(0, tokens)]), model.new_cache(1, 70), np.arange(70))
    found, allowed = errors(ours, theirs[0]), errors(theirs[1], theirs[0])
    print(f"{name}, mean and worst row: ours {found.mean():.2e}, {found.max():.2e};", end=" ")
    print(f"transformers {allowed.mean():.2e}, {allowed.max():.2e}")
    assert found.mean() <= allowed.mean() and found.max() <= 1.5 * allowed.max()
