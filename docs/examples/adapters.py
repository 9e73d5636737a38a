"""A LoRA adapter beside the plain model. Requests with the adapter and without it run in one batch.

python docs/examples/adapters.py
"""

from pathlib import Path

from llama3 import Llama, RequestError

RHYME = Path(__file__).parents[2] / "weights" / "rhyme"  # as PEFT saves an adapter: a config and a safetensors file
QUESTION = [{"role": "user", "content": "What is RoPE?"}]


def main() -> None:
    llama = Llama.load(slots=2, lora={"rhyme": RHYME})  # the weights are shared; the adapter is never merged into them
    print("adapters:", ", ".join(llama.adapters))

    # Both streams are open at once. A step for one of them computes the next token of both.
    plain = llama.stream_chat(QUESTION, temperature=0)
    rhyme = llama.stream_chat(QUESTION, temperature=0, lora="rhyme")
    print("plain:", "".join(piece.text for piece in plain))
    print("rhyme:", "".join(piece.text for piece in rhyme))

    try:
        llama.chat(QUESTION, lora="sonnet")
    except RequestError as error:
        print("refused:", error)


if __name__ == "__main__":
    main()
