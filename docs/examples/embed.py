"""Use llama3 inside a program: load a model, ask it, stream an answer, look at probabilities.

python docs/examples/embed.py [MODEL]        MODEL: a folder or a name on the hub; without it, the demo
"""

import math
import sys

from llama3 import Llama, Llama3Error


def main() -> None:
    llama = Llama.load(sys.argv[1] if len(sys.argv) > 1 else None)

    answer = llama.chat([{"role": "user", "content": "What is RoPE?"}], temperature=0)
    print(answer.text)
    print(
        f"({answer.usage.prompt_tokens} + {answer.usage.completion_tokens} tokens, ended by {answer.finish_reason})\n"
    )

    # A dialogue is a list of messages: append the answer, then the next question.
    dialogue = [
        {"role": "user", "content": "What is RoPE?"},
        {"role": "assistant", "content": answer.text},
        {"role": "user", "content": "What is the KV cache?"},
    ]
    for piece in llama.stream_chat(dialogue, seed=1):
        print(piece.text, end="", flush=True)
    print("\n")

    # generate and stream continue raw text; logprobs tells how sure the model was of each token.
    stream = llama.stream("The KV cache", temperature=0, max_tokens=5, logprobs=1)
    for piece in stream:
        print(f"{piece.text!r:12} probability {math.exp(piece.logprob):.2f}")

    try:
        llama.chat([{"role": "user", "content": "Hello"}], top_p=2)
    except Llama3Error as error:
        print(f"\nrefused: {error}")


if __name__ == "__main__":
    main()
