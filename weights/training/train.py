"""Trains the demo checkpoint on the CPU: tokenizer, model and export, in one seeded command.

    python weights/training/train.py

The model is transformers' `LlamaForCausalLM`, not this project's own implementation. The resulting folder,
`weights/demo`, has Hugging Face's layout with the weights in bf16, and the tokenizer in tiktoken's format.
"""

import argparse
import itertools
import json
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tiktoken
import torch
import torch.distributed
import torch.multiprocessing
from corpus import Corpus, Message
from safetensors.torch import load_file, save_file
from tool_requests import ToolCorpus
from torch.nn.functional import cross_entropy
from train_tokenizer import VOCAB_SIZE, load, train_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from llama3.tools import OFFER

SEED = 3
WORKERS = 2  # processes of one thread each; the result depends on it
BATCH_TOKENS = 1536  # tokens in a batch of one worker
WARMUP_STEPS = 100
MAX_LENGTH = 2048
SHORTENED = 0.75  # the share of single answers of which only the beginning is trained
BEGINNING = 10  # tokens; they decide the subject of an answer, and its end needs far fewer repetitions


class Round(NamedTuple):
    steps: int
    peak: float  # the highest learning rate
    cool_down: float  # the share of the steps, at the end, in which the learning rate falls linearly to zero
    plain: float  # the share of short questions such as "what is rope"
    tools: float  # the share of dialogues with tools, answers in JSON and words to be copied, taken together


# Each round starts from the rounded weights of the one before, with a new optimiser and new dialogues.
ROUNDS = (
    Round(5000, 1.5e-3, cool_down=0.0, plain=0.05, tools=0.35),
    Round(4500, 1.5e-3, cool_down=1.0, plain=0.15, tools=0.35),
    Round(2800, 1e-3, cool_down=1.0, plain=0.15, tools=0.28),
    Round(8000, 1.2e-3, cool_down=1.0, plain=0.15, tools=0.32),
)
COPIED = re.compile(r'((?<=[:\[,]")[^\W\d_][^"\\]*(?="[,}\]]))')  # a string value in JSON without spaces
KEY = re.compile(r'(",")?\w+":"')  # what precedes such a value in a call
ONLY_OPEN = 0.75  # the share of calls in which only tokens that the grammar leaves open count in the loss
Example = tuple[list[int], list[int]]  # token ids; for each, the next token, or -100 if it does not count in the loss

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
    initializer_range=0.04,
)


class Encoder:
    """Dialogues and running text as examples, in Llama 3's chat format."""

    def __init__(self, tokenizer: tiktoken.Encoding) -> None:
        self.tokenizer = tokenizer
        self.special = {name: tokenizer.encode_single_token(name) for name in tokenizer.special_tokens_set}

    def message(self, role: str, content: str) -> tuple[list[int], list[int], list[bool]]:
        """The header's tokens, the body's tokens, and for each of these whether the grammar of calls leaves it open."""
        header = [self.special["<|start_header_id|>"], *self.tokenizer.encode_ordinary(role)]
        header += [self.special["<|end_header_id|>"], *self.tokenizer.encode_ordinary("\n\n")]
        body, free = self.call(content.strip()) if role == "assistant" else self.plain(content.strip())
        return header, [*body, self.special["<|eot_id|>"]], [*free, True]

    def plain(self, content: str) -> tuple[list[int], list[bool]]:
        ids = self.tokenizer.encode_ordinary(content)
        return ids, [True] * len(ids)

    def call(self, content: str) -> tuple[list[int], list[bool]]:
        """The tokens of a call or a list. Each value has the tokens that it has after a space, as in the request.

        The tokenizer splits "Quebec" and " Quebec" differently. Copying is easier if all tokens but the first are the
        same, and the reader of the answer sees only its text. The grammar leaves open whether to call, the tool, the
        values, and where a value ends. It does not leave the keys open, because the tool defines them.
        """
        head, sign, values = content.partition('"parameters":{"') if content.startswith("{") else ("", "", content)
        if not sign and not values.startswith("["):
            return self.plain(content)
        ids, free = self.plain(head + sign)  # including the quotation mark, which changes the last token
        if sign:
            free[1:3] = [False] * 2  # name, ":"
            free[-2:] = [False] * 2  # parameters, ":{"
        for i, part in enumerate(COPIED.split(values)):
            if i % 2:
                first, *rest = self.tokenizer.encode_ordinary(" " + part)
                word = self.tokenizer.decode_single_token_bytes(first).decode().removeprefix(" ")
                ids += [*self.tokenizer.encode_ordinary(word), *rest]
                free += [True] * (len(ids) - len(free))
            else:
                tokens = self.tokenizer.encode_ordinary(part)
                ids += tokens
                key = bool(sign and KEY.fullmatch(part))
                free += [not key or (n == 0 and i > 0) for n in range(len(tokens))]
        return ids, free

    def dialogue(self, messages: list[Message], shorten: bool, forced: int = 0, only_open: bool = False) -> Example:
        """A dialogue as an example. In the loss, only the assistant's tokens and the ends of its turns count.

        shorten: keep only the beginning of the last answer. forced: this many of its first tokens do not count.
        only_open: in calls, only tokens that the grammar leaves open count.
        """
        ids, counts = [self.special["<|begin_of_text|>"]], [False]
        for message in messages:
            header, body, free = self.message(message["role"], message["content"])
            if shorten and message is messages[-1]:
                body = body[:BEGINNING]
            own, silent = message["role"] == "assistant", forced if message is messages[-1] else 0
            ids += header + body
            counts += [False] * len(header)
            counts += [own and i >= silent and (free[i] or not only_open) for i in range(len(body))]
        return shifted(ids, counts)

    def text(self, text: str) -> Example:
        ids = self.tokenizer.encode_ordinary(text)
        ids = [self.special["<|begin_of_text|>"], *ids, self.special["<|end_of_text|>"]]
        return shifted(ids, [True] * len(ids))


def shifted(ids: list[int], counts: list[bool]) -> Example:
    ids, counts = ids[: MAX_LENGTH + 1], counts[: MAX_LENGTH + 1]
    return ids[:-1], [token if count else -100 for token, count in zip(ids[1:], counts[1:], strict=True)]


def examples(encoder: Encoder, plan: Round, seed: int, rng: random.Random) -> Iterator[Example]:
    corpus = Corpus(plan.plain)
    stream, tools = corpus.stream(seed), ToolCorpus(corpus)
    while True:
        if rng.random() < plan.tools:
            item = tools.draw(rng)
            with_tools = any(message["content"].startswith(OFFER) for message in item)
            in_json = item[-1]["content"].startswith("{")
            # When an answer is in JSON, the grammar demands it and the prompt does not mention it. So the first brace
            # must not be learnt, or plain questions would be answered in JSON, too.
            shorten = with_tools and not in_json and rng.random() < SHORTENED
            forced = 1 if in_json and not with_tools else 0
            yield encoder.dialogue(item, shorten, forced, only_open=with_tools and rng.random() < ONLY_OPEN)
        else:
            item = next(stream)
            single = not isinstance(item, str) and sum(message["role"] == "user" for message in item) == 1
            shorten = single and rng.random() < SHORTENED
            yield encoder.text(item) if isinstance(item, str) else encoder.dialogue(item, shorten)


def batches(encoder: Encoder, plan: Round, seed: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches of about BATCH_TOKENS tokens. Examples of similar length share a batch, so that padding is rare."""
    rng = random.Random(seed)
    drawn = examples(encoder, plan, seed, rng)
    while True:
        pool = list(itertools.islice(drawn, 2048))
        pool.sort(key=lambda example: len(example[0]))
        groups: list[list[Example]] = [[]]
        for example in pool:
            if groups[-1] and (len(groups[-1]) + 1) * len(example[0]) > BATCH_TOKENS:
                groups.append([])
            groups[-1].append(example)
        rng.shuffle(groups)
        for group in groups:
            width = max(len(ids) for ids, _ in group)
            # Padding is on the right, where the causal mask hides it from every token that counts.
            yield (
                torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in group]),
                torch.tensor([targets + [-100] * (width - len(targets)) for _, targets in group]),
            )


def learning_rate(step: int, plan: Round) -> float:
    """The learning rate: warm-up, a plateau, and a linear fall to zero."""
    falls = (plan.steps - step) / (plan.cool_down * plan.steps) if plan.cool_down else 1.0
    return plan.peak * min(1.0, (step + 1) / WARMUP_STEPS, falls)


def write_weights(weights: dict[str, torch.Tensor], folder: Path) -> None:
    rounded = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})


def export(model: LlamaForCausalLM, tokenizer: tiktoken.Encoding, folder: Path) -> None:
    """Write the weights, rounded to bf16, and the config files with the stop tokens to the folder that ships."""
    write_weights(model.state_dict(), folder)
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


def average_gradients(model: LlamaForCausalLM) -> None:
    """Average the workers' gradients, in a single message."""
    gradients = [p.grad for p in model.parameters()]
    flat = torch.cat([gradient.view(-1) for gradient in gradients])
    torch.distributed.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient) / WORKERS)


def worker(rank: int, folder: Path, number: int, meeting_point: str) -> None:
    """One of WORKERS equal processes: each has the same model and its own dialogues, and gradients are averaged."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=WORKERS)
    torch.manual_seed(SEED)
    tokenizer = load(folder / "tokenizer.model")
    model, plan = LlamaForCausalLM(CONFIG), ROUNDS[number]
    decoder = torch.compile(model.model, dynamic=True)  # twice as fast; needs a C++ compiler
    if number > 0:
        model.load_state_dict(load_file(folder / "model.safetensors"))
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": matrices, "weight_decay": 0.1}, {"params": vectors, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=plan.peak, betas=(0.9, 0.95))
    stream = batches(Encoder(tokenizer), plan, seed=(SEED + number) * WORKERS + rank)
    start, seen, losses = time.time(), 0, []
    for step, (ids, targets) in enumerate(itertools.islice(stream, plan.steps)):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step, plan)
        wanted = targets != -100
        with torch.autocast("cpu", torch.bfloat16):
            hidden = decoder(input_ids=ids, use_cache=False).last_hidden_state
            logits = model.lm_head(hidden[wanted])
        loss = cross_entropy(logits.float(), targets[wanted])
        loss.backward()
        average_gradients(model)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad()
        seen += WORKERS * ids.numel()
        losses.append(loss.item())
        if rank == 0 and (step + 1) % 50 == 0:
            done, recent = f"round {number + 1}, step {step + 1}", sum(losses[-50:]) / 50
            minutes = (time.time() - start) / 60
            print(f"{done}  loss {recent:.4f}  about {seen:,} tokens  {minutes:.1f} min", flush=True)
        if rank == 0 and ((step + 1) % 250 == 0 or step + 1 == plan.steps):
            export(model, tokenizer, folder)


def run_round(folder: Path, number: int) -> None:
    """Run one round of training. It reads the weights in the folder, except in the first round, and replaces them."""
    with tempfile.TemporaryDirectory() as meeting_place:
        torch.multiprocessing.spawn(worker, (folder, number, f"{meeting_place}/store"), nprocs=WORKERS)


def train(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train_tokenizer(Corpus(), folder / "tokenizer.model", SEED)
    print(f"model: {sum(p.numel() for p in LlamaForCausalLM(CONFIG).parameters()):,} parameters", flush=True)
    for number in range(len(ROUNDS)):
        run_round(folder, number)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Train the demo checkpoint.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "demo")
    parser.add_argument("--round", type=int, metavar="N", help="only this one, from the weights in --out")
    args = parser.parse_args()
    if args.round:
        run_round(args.out, args.round - 1)
    else:
        train(args.out)
