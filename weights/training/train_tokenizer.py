"""Trains the demo's tokenizer on the corpus, and writes it as `tokenizer.model`, in tiktoken's format.

Each line is a token: its bytes in base64, a space, and its rank. The 256 single bytes come first, then the merges in
the order in which they were learnt. Llama 3's 256 special tokens have the ids after the last rank, and are not in the
file.
"""

import base64
import random
from pathlib import Path

import tiktoken
from corpus import Corpus
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from tool_requests import ToolCorpus

N_RANKS = 1792
JSON_DIALOGUES = 100
PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPECIAL = (
    ["<|begin_of_text|>", "<|end_of_text|>"]
    + [f"<|reserved_special_token_{i}|>" for i in range(4)]
    + ["<|start_header_id|>", "<|end_header_id|>", "<|reserved_special_token_4|>", "<|eot_id|>"]
    + [f"<|reserved_special_token_{i}|>" for i in range(5, 251)]
)
VOCAB_SIZE = N_RANKS + len(SPECIAL)


def texts(corpus: Corpus, seed: int) -> list[str]:
    """The training texts: all that was written, three times, drawn questions, short answers in capitals, and some JSON.

    Without the JSON, the offer of a tool would have 2.3 times as many tokens, and there would be fewer questions in a
    batch.
    """
    drawn = [
        message["content"]
        for _, item in zip(range(4000), corpus.stream(seed), strict=False)
        if not isinstance(item, str)
        for message in item
        if message["role"] != "assistant"
    ]
    capitals = [answer.upper() for subject in corpus.subjects.values() for answer in subject.answers.get("short", ())]
    tools, rng = ToolCorpus(corpus), random.Random(seed)
    in_json = [
        message["content"]
        for _ in range(JSON_DIALOGUES)
        for draw in (tools.with_a_tool, tools.as_json, tools.repeated)
        for message in draw(rng)
    ]
    return 3 * corpus.written() + drawn + capitals + in_json


def byte_of_char() -> dict[str, int]:
    """The byte of each character with which the `tokenizers` library writes bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def learn(samples: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(PATTERN), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=N_RANKS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(samples, trainer)
    return tokenizer


def ranks_of(tokenizer: Tokenizer) -> dict[bytes, int]:
    """Each token's rank: for a single byte its value, and for merged tokens 256 and on, in the order of learning."""
    byte = byte_of_char()
    pieces = [
        bytes(byte[char] for char in piece)
        for piece, _ in sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    ]
    merged = [piece for piece in pieces if len(piece) > 1]
    ranks = {bytes([value]): value for value in range(256)}
    return ranks | {piece: 256 + i for i, piece in enumerate(merged)}


def save(ranks: dict[bytes, int], path: Path) -> None:
    lines = [f"{base64.b64encode(piece).decode()} {rank}\n" for piece, rank in ranks.items()]
    path.write_text("".join(lines), encoding="ascii")


def load(path: Path) -> tiktoken.Encoding:
    lines = path.read_text(encoding="ascii").splitlines()
    ranks = {base64.b64decode(piece): int(rank) for piece, rank in (line.split() for line in lines)}
    special = {name: len(ranks) + i for i, name in enumerate(SPECIAL)}
    return tiktoken.Encoding("llama3-demo", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)


def train_tokenizer(corpus: Corpus, path: Path, seed: int) -> tiktoken.Encoding:
    """Train and write the tokenizer, and check that tiktoken splits every sample as the trained tokenizer does."""
    samples = texts(corpus, seed)
    trained = learn(samples)
    ranks = ranks_of(trained)
    if len(ranks) != N_RANKS:
        raise RuntimeError(f"the corpus gave {len(ranks)} tokens; expected {N_RANKS}: write more text or lower N_RANKS")
    save(ranks, path)
    encoding = load(path)
    byte = byte_of_char()
    for text in samples:
        ours = encoding.decode_tokens_bytes(encoding.encode_ordinary(text))
        theirs = [bytes(byte[char] for char in piece) for piece in trained.encode(text).tokens]
        if ours != theirs:
            raise RuntimeError(f"tiktoken and tokenizers split this text differently: {text!r}")
    share = sum(map(len, (text.encode() for text in samples))) / sum(len(encoding.encode_ordinary(t)) for t in samples)
    print(f"tokenizer: {len(ranks)} ranks + {len(SPECIAL)} special tokens, {share:.2f} bytes a token")
    return encoding


if __name__ == "__main__":
    train_tokenizer(Corpus(), Path(__file__).parents[1] / "demo" / "tokenizer.model", seed=1)
