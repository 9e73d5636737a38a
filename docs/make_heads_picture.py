"""Draw docs/heads.svg: what each head of the demo looks at before it answers "What is RoPE?".

python -m docs.make_heads_picture        writes the picture; tests/inspect/test_page.py checks that it is up to date
"""

from pathlib import Path

from llama3 import Llama
from llama3.inspect import inspect
from llama3.inspect.summary import quoted
from llama3.inspect.svg import heat_map

PICTURE = Path(__file__).with_name("heads.svg")


def picture() -> str:
    """The weights of the last position of the prompt: a row is a head, a column a token."""
    seen = inspect(Llama.load(), [{"role": "user", "content": "What is RoPE?"}], max_tokens=1, temperature=0)
    n, L = seen.n_prompt, seen.config.n_layers
    weights = seen.attention[:, :, n - 1, :n].reshape(-1, n)  # (n_layers * n_heads, n)
    names = [f"{layer}.{head}" for layer in range(L) for head in range(len(weights) // L)]
    title = "Each head's weights at the last position of the prompt"
    return heat_map(weights, names, [quoted(token.text, 18) for token in seen.tokens[:n]], title, cell=24, limit=1)


if __name__ == "__main__":
    PICTURE.write_text(picture(), encoding="utf-8")
