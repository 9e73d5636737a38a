"""What do 8 and 4 bits cost? The divergence from the full model, and how often the most likely token is the same.

    python benchmarks/quantize.py [FOLDER ...] [--tokens TEXTS.json] [--out FILE.json]      (without FOLDER: the demo)

The demo is measured where it answers its held-out questions (weights/training/held_out.tsv): at each token of the
answers that it gives in 16 bits. Every other model is measured on the texts in TEXTS.json, or without them on texts of
its own, drawn at temperature 1. TEXTS.json is {"source": "what they are", "texts": [[token ids], ...]}, so the model
needs no tokenizer. KL is the Kullback-Leibler divergence of the small model's tokens from the full one's, in nats.
The sizes are those of the safetensors files.
"""

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from machine import about_this_run  # the file beside this one

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "weights" / "demo"
sys.path[:0] = [str(ROOT), str(ROOT / "weights" / "training")]
from corpus import HERE, Corpus  # noqa: E402
from score import Judge, read_questions  # noqa: E402

from llama3 import Completion, Llama  # noqa: E402
from llama3.model.batch import Batch  # noqa: E402
from llama3.quantize import quantize  # noqa: E402

BITS = (8, 4)
SLOTS = 16
TEXTS, LENGTH = 16, 128  # that a model draws
Text = tuple[list[int], int]  # token ids, and the first position whose logits are compared


def questions() -> list[tuple[str, str]]:
    """The demo's held-out questions: (subject, question)."""
    return read_questions(HERE / "held_out.tsv")


def answers(llama: Llama) -> list[Completion]:
    """The most likely answers to the held-out questions."""
    with ThreadPoolExecutor(SLOTS) as pool:
        return list(pool.map(lambda ask: llama.chat([{"role": "user", "content": ask[1]}], temperature=0), questions()))


def as_texts(llama: Llama, given: list[Completion]) -> list[Text]:
    """Questions and answers. The last logits of a question choose the first token of the answer."""
    prompts = [llama.encode_chat([{"role": "user", "content": question}]) for _, question in questions()]
    return [([*prompt, *answer.tokens], len(prompt) - 1) for prompt, answer in zip(prompts, given)]


def right(given: list[Completion]) -> int:
    """How many answers are on their subject, by the rule of weights/training/score.py."""
    judge = Judge(Corpus())
    return sum(judge.right(subject, answer.text) for (subject, _), answer in zip(questions(), given))


def own_texts(llama: Llama) -> list[Text]:
    """Texts that the model draws at temperature 1, all at once, each from token 1."""
    model, random = llama.model, np.random.RandomState(0)
    cache, texts = model.new_cache(TEXTS, LENGTH), [[1] for _ in range(TEXTS)]
    for _ in range(LENGTH - 1):
        batch = Batch.of([(i, np.array(text[-1:], np.int32)) for i, text in enumerate(texts)])
        logits = model.forward(batch, cache, np.arange(TEXTS))
        for text, row in zip(texts, logits):
            text.append(int(np.argmax(row + random.gumbel(size=row.size))))
    return [(text, 0) for text in texts]


def log_probabilities(llama: Llama, tokens: list[int], first: int) -> np.ndarray:
    model = llama.model
    batch = Batch.of([(0, np.array(tokens[:-1], np.int32))])
    logits = model.forward(batch, model.new_cache(1, len(tokens)), np.arange(first, len(tokens) - 1)).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def distance(full: Llama, small: Llama, texts: list[Text]) -> dict[str, float]:
    kl, same = [], []
    for tokens, first in texts:
        p, q = (log_probabilities(llama, tokens, first) for llama in (full, small))
        kl += (np.exp(p) * (p - q)).sum(axis=1).tolist()
        same += (p.argmax(axis=1) == q.argmax(axis=1)).tolist()
    return {
        "positions": len(kl),
        "kl_mean": float(np.mean(kl)),
        "kl_worst": float(np.max(kl)),
        "top1": float(np.mean(same)),
    }


def measure(folder: Path, texts: list[Text] | None = None) -> dict[str, Any]:
    """texts: what a model other than the demo reads; without them it writes its own."""
    demo = folder == DEMO
    full = Llama.load(folder, slots=SLOTS)
    found: dict[str, Any] = {"16": {"bytes": full.checkpoint.size}}
    if demo:
        given = answers(full)
        texts, found["16"]["right"] = as_texts(full, given), right(given)
    texts = texts or own_texts(full)
    for bits in BITS:
        with tempfile.TemporaryDirectory() as target:
            small = Llama.load(quantize(folder, target, bits), slots=SLOTS)
            found[str(bits)] = {"bytes": small.checkpoint.size, **distance(full, small, texts)}
            if demo:
                found[str(bits)]["right"] = right(answers(small))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folders", nargs="*", type=Path, default=[DEMO])
    parser.add_argument("--tokens", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    given = json.loads(args.tokens.read_text()) if args.tokens else {"source": None, "texts": []}
    texts = [(tokens, 0) for tokens in given["texts"]]
    found = {folder.name: measure(folder, texts) for folder in args.folders}
    print(json.dumps(found, indent=1))
    if args.out:
        about = about_this_run() | {"texts": given["source"], "models": found}
        args.out.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
