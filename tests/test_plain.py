"""plain.py against transformers' logits and tiktoken's ids, and the fast tokenizer and sampler against plain.py."""

import ast
from pathlib import Path

import numpy as np
import pytest

from llama3 import Llama, SamplingParams, plain
from llama3.byte_pair import split
from llama3.checkpoint import Checkpoint, load_folder
from llama3.parity import compare_arrays, read_reference
from llama3.philox import uniform
from llama3.sampler import SequenceSampler
from tests import real_vocabulary as real
from tests.reference_cases import CASES, Case

ROOT = Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "weights" / "demo_reference.safetensors"


def test_it_is_at_most_120_lines():
    assert len((ROOT / "llama3" / "plain.py").read_text().splitlines()) <= 120


@pytest.fixture(scope="module")
def demo() -> Checkpoint:
    return load_folder(ROOT / "weights" / "demo")


# ---- the model


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_row_and_activation_of_every_reference_is_within_1e_5(case: Case, tmp_path: Path):
    reference = read_reference(case.path)
    checkpoint = load_folder(case.write(tmp_path, case.tensors()))
    seen: dict[str, np.ndarray] = {}

    def see(name: str, value: np.ndarray) -> None:
        if name in reference.activations:
            seen[name] = value

    logits = plain.forward(reference.tokens, checkpoint.config, checkpoint.weights, see)
    assert logits.dtype == np.float64
    assert worst_row(logits[reference.positions], reference.logits) <= 1e-5
    assert seen.keys() == reference.activations.keys()
    for name, value in seen.items():
        expected = reference.activations[name]
        assert worst_row(value[reference.positions] if len(expected) < len(value) else value, expected) <= 1e-5, name


def worst_row(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest relative error of a row."""
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return float(error.max())


def test_the_demo_s_golden_greedy_ids_follow_their_prompt(demo: Checkpoint):
    golden = read_reference(GOLDEN)
    prompt = Llama(demo).encode_chat([{"role": "user", "content": "What is RoPE?"}])
    assert golden.tokens[: len(prompt)].tolist() == prompt and len(golden.tokens) == 200
    logits = plain.forward(golden.tokens, demo.config, demo.weights)
    assert logits[len(prompt) - 1 : -1].argmax(axis=1).tolist() == golden.tokens[len(prompt) :].tolist()
    assert compare_arrays(logits, golden, rtol=1e-5).ok


def test_see_is_given_every_intermediate_value(demo: Checkpoint):
    seen: dict[str, tuple[int, ...]] = {}
    c, T = demo.config, 5
    logits = plain.forward([1, 2, 3, 4, 5], c, demo.weights, lambda name, value: seen.update({name: value.shape}))
    row, head, kv_head = (T, c.dim), (T, c.n_heads, c.head_dim), (T, c.n_kv_heads, c.head_dim)
    layer = {"attention_norm": row, "q": head, "k": kv_head, "v": kv_head, "q_rope": head, "k_rope": kv_head}
    for j in range(c.n_heads):
        layer |= {f"heads.{j}.scores": (T, T), f"heads.{j}.weights": (T, T), f"heads.{j}.output": (T, c.head_dim)}
    layer |= {
        "attention": row,
        "attention_residual": row,
        "ffn_norm": row,
        "gate": (T, c.hidden_dim),
        "up": (T, c.hidden_dim),
    }
    layer |= {"feed_forward": row}
    expected = {f"layers.{i}.{name}": shape for i in range(c.n_layers) for name, shape in layer.items()}
    expected |= {f"layers.{i}": row for i in range(c.n_layers)}
    expected |= {"tok_embeddings": row, "norm": row, "logits": (T, c.vocab_size)}
    assert seen == expected and logits.shape == (T, c.vocab_size)


def test_an_array_that_see_returns_takes_the_value_s_place(demo: Checkpoint):
    tokens, seen = [1, 2, 3], {}
    plain.forward(tokens, demo.config, demo.weights, seen.__setitem__)

    def first_head_off(name: str, value: np.ndarray) -> np.ndarray | None:
        return np.zeros_like(value) if name == "layers.0.heads.0.output" else None

    changed: dict[str, np.ndarray] = {}
    plain.forward(tokens, demo.config, demo.weights, lambda *at: (changed.setdefault(*at), first_head_off(*at))[1])
    later = list(seen)[list(seen).index("layers.0.attention") :]
    assert [name for name, value in changed.items() if not np.array_equal(value, seen[name])] == later


MODEL_PARTS = ("rms_norm", "linear", "rope_angles", "rotate", "attention_scores", "softmax", "silu")


@pytest.mark.parametrize("name", MODEL_PARTS)
def test_each_part_of_the_model_can_be_replaced_alone(name: str, demo: Checkpoint, monkeypatch):
    tokens = [1, 2, 3]
    before, part = plain.forward(tokens, demo.config, demo.weights), getattr(plain, name)
    monkeypatch.setattr(plain, name, lambda *args: part(*args) * 1.001)
    assert not np.allclose(plain.forward(tokens, demo.config, demo.weights), before, rtol=1e-6)


def test_every_function_of_the_model_is_among_the_replaceable_ones():
    tree = ast.parse((ROOT / "llama3" / "plain.py").read_text())
    names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    assert names == {"merge", "forward", "sample", "survivors", *MODEL_PARTS}


# ---- the tokenizer


def encode(text: str, ranks: dict[bytes, int]) -> list[int]:
    """`plain.merge` on the chunks of a text. Llama 3 takes a chunk that is a token as that token, without merging."""
    chunks = [chunk.encode() for chunk in split(text)]
    return [token for chunk in chunks for token in ([ranks[chunk]] if chunk in ranks else plain.merge(chunk, ranks))]


def test_10_000_texts_have_the_ids_of_both_fast_tokenizers():
    by_hand, tiktoken = real.tokenizer(False), real.tokenizer(True)
    rng, unicode_differences = np.random.default_rng(12), set(real.unicode_differences())
    scripts = list("abcdefghijklmnopqrstuvwxyzABCTHE'    \n\t0123456789.,;:!?(){}[]äöüßéñçжщяאבגαβγ漢字かな한국😀")
    for i in range(10_000):
        if i % 2:  # random letters, mostly merged from small pieces
            text = "".join(scripts[j] for j in rng.integers(0, len(scripts), rng.integers(1, 40)))
        else:  # random tokens: words, code and other scripts
            text = by_hand.decode(rng.integers(0, 128_000, 6).tolist())
        ids = encode(text, by_hand.ranks)
        assert ids == by_hand.encode(text), text
        if not set(text) & unicode_differences:  # letters that one of the two Unicode versions does not know
            assert ids == tiktoken.encode(text), text


# ---- the sampler


def test_sample_draws_the_fast_sampler_s_token_1_000_times():
    rng = np.random.default_rng(13)
    for draw in range(1_000):
        vocab_size = int(rng.choice([7, 100, 3000]))
        logits = (rng.standard_normal(vocab_size) * rng.uniform(0.5, 6)).astype(np.float32)
        logits[rng.random(vocab_size) < 0.1] = logits[0]  # ties
        has = rng.random(6) < 0.5
        params = SamplingParams(
            temperature=float(rng.choice([0, 0.3, 0.6, 1, 2])),
            top_k=int(rng.integers(1, vocab_size + 1)) if has[0] else None,
            top_p=float(rng.random()) if has[1] else None,
            min_p=float(rng.random()) / 2 if has[2] else None,
            repetition_penalty=float(rng.uniform(0.8, 1.5)) if has[3] else 1.0,
            frequency_penalty=float(rng.uniform(-1, 1)) if has[4] else 0.0,
            presence_penalty=float(rng.uniform(-1, 1)) if has[5] else 0.0,
            seed=draw,
        )
        prompt, output = (rng.integers(0, vocab_size, n).tolist() for n in (10, draw % 20))
        fast = SequenceSampler(params, prompt, vocab_size)
        for token in output:
            fast.accept(token)
        token = plain.sample(logits, params, uniform(draw, len(output)), prompt, output)
        assert fast.sample(logits).token == token, params
