"""Train the demo checkpoint: tokenizer, model, export. One seeded command, on the CPU:

    python weights/training/train.py

The model is transformers' `LlamaForCausalLM`, another implementation than this project's own. The finished folder,
`weights/demo`, has Hugging Face's layout with the weights in bf16, and the tokenizer in tiktoken's format.
"""

import argparse
import itertools
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path

import tiktoken
import torch
from safetensors.torch import save_file
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from corpus import Corpus, Message
from train_tokenizer import VOCAB_SIZE, train_tokenizer

SEED = 3
STEPS = 2000
BATCH_TOKENS = 4096
LEARNING_RATE = 2e-3
WARMUP_STEPS = 60
MAX_LENGTH = 2048
SHORTENED = 0.6  # the share of single answers of which only the beginning is trained
BEGINNING = 20  # tokens; an answer's subject is decided here, and its end needs far fewer repetitions
Example = tuple[list[int], list[int]]  # token ids; for each position the next token, or -100 where it does not count

CONFIG = LlamaConfig(
    vocab_size=VOCAB_SIZE,
    hidden_size=256,
    intermediate_size=640,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=1,
    head_dim=64,
    max_position_embeddings=MAX_LENGTH,
    rope_theta=500000.0,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
    initializer_range=0.02,
)


class Encoder:
    """Dialogues and running text as examples, in Llama 3's chat format."""

    def __init__(self, tokenizer: tiktoken.Encoding) -> None:
        self.tokenizer = tokenizer
        self.special = {name: tokenizer.encode_single_token(name) for name in tokenizer.special_tokens_set}

    def message(self, role: str, content: str) -> tuple[list[int], list[int]]:
        header = [self.special["<|start_header_id|>"], *self.tokenizer.encode_ordinary(role)]
        header += [self.special["<|end_header_id|>"], *self.tokenizer.encode_ordinary("\n\n")]
        return header, [*self.tokenizer.encode_ordinary(content.strip()), self.special["<|eot_id|>"]]

    def dialogue(self, messages: list[Message], shorten: bool) -> Example:
        """Only the assistant's own tokens count, and the token that ends its turn."""
        ids, counts = [self.special["<|begin_of_text|>"]], [False]
        for message in messages:
            header, body = self.message(message["role"], message["content"])
            if shorten and message is messages[-1]:
                body = body[:BEGINNING]
            ids += header + body
            counts += [False] * len(header) + [message["role"] == "assistant"] * len(body)
        return shifted(ids, counts)

    def text(self, text: str) -> Example:
        ids = self.tokenizer.encode_ordinary(text)
        ids = [self.special["<|begin_of_text|>"], *ids, self.special["<|end_of_text|>"]]
        return shifted(ids, [True] * len(ids))


def shifted(ids: list[int], counts: list[bool]) -> Example:
    ids, counts = ids[: MAX_LENGTH + 1], counts[: MAX_LENGTH + 1]
    return ids[:-1], [token if count else -100 for token, count in zip(ids[1:], counts[1:], strict=True)]


def batches(corpus: Corpus, encoder: Encoder, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of about BATCH_TOKENS: examples of similar length side by side, so that little is padding."""
    rng = random.Random(seed)
    stream = corpus.stream(seed)
    while True:
        pool = []
        for item in itertools.islice(stream, 2048):
            single = not isinstance(item, str) and sum(message["role"] == "user" for message in item) == 1
            shorten = single and rng.random() < SHORTENED
            pool.append(encoder.text(item) if isinstance(item, str) else encoder.dialogue(item, shorten))
        pool.sort(key=lambda example: len(example[0]))
        groups: list[list[Example]] = [[]]
        for example in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(example[0]) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            # Padding stands on the right, where the causal mask hides it from every token that counts.
            yield (
                torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group]),
                torch.tensor([targets + [-100] * (width - len(targets)) for _, targets in group]),
            )


def learning_rate(step: int, steps: int) -> float:
    """Warm-up, then a cosine down to a hundredth."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    done = (step - WARMUP_STEPS) / max(1, steps - WARMUP_STEPS)
    return LEARNING_RATE * (0.01 + 0.99 * (1 + math.cos(math.pi * done)) / 2)


def export(model: LlamaForCausalLM, tokenizer: tiktoken.Encoding, folder: Path) -> None:
    """The folder that ships, next to its tokenizer.model: weights rounded to bf16, config, stop tokens."""
    weights = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    special = {name: tokenizer.encode_single_token(name) for name in tokenizer.special_tokens_set}
    bos, stops = special["<|begin_of_text|>"], [special["<|end_of_text|>"], special["<|eot_id|>"]]
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": CONFIG.hidden_size,
        "intermediate_size": CONFIG.intermediate_size,
        "num_hidden_layers": CONFIG.num_hidden_layers,
        "num_attention_heads": CONFIG.num_attention_heads,
        "num_key_value_heads": CONFIG.num_key_value_heads,
        "head_dim": CONFIG.head_dim,
        "hidden_act": "silu",
        "vocab_size": CONFIG.vocab_size,
        "max_position_embeddings": CONFIG.max_position_embeddings,
        "rope_theta": 500000.0,
        "rms_norm_eps": CONFIG.rms_norm_eps,
        "tie_word_embeddings": CONFIG.tie_word_embeddings,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bos,
        "eos_token_id": stops,
        "torch_dtype": "bfloat16",
    }
    generation = {"bos_token_id": bos, "eos_token_id": stops, "do_sample": True, "temperature": 0.6, "top_p": 0.9}
    for name, content in (("config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def train(folder: Path, steps: int, threads: int) -> None:
    torch.manual_seed(SEED)
    torch.set_num_threads(threads)
    folder.mkdir(parents=True, exist_ok=True)
    corpus = Corpus()
    tokenizer = train_tokenizer(corpus, folder / "tokenizer.model", SEED)
    model = LlamaForCausalLM(CONFIG)
    print(f"model: {sum(p.numel() for p in model.parameters()):,} parameters")
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    start, seen, counted, losses = time.time(), 0, 0, []
    for step, (ids, targets) in enumerate(itertools.islice(batches(corpus, Encoder(tokenizer), SEED), steps)):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, steps)
        hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state
        wanted = targets != -100
        loss = cross_entropy(model.lm_head(hidden[wanted]), targets[wanted])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seen, counted = seen + ids.numel(), counted + int(wanted.sum())
        losses.append(loss.item())
        if (step + 1) % 25 == 0 or step + 1 == steps:
            minutes = (time.time() - start) / 60
            recent = sum(losses[-25:]) / len(losses[-25:])
            print(f"step {step + 1}  loss {recent:.4f}  {seen:,} tokens, {counted:,} of them counted  {minutes:.1f} min", flush=True)
        if (step + 1) % 200 == 0 or step + 1 == steps:
            export(model, tokenizer, folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "demo")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--threads", type=int, default=1, help="more threads change the rounding, and so the result")
    args = parser.parse_args()
    train(args.out, args.steps, args.threads)
