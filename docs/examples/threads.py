"""Several threads share one model. Their requests run in one batch, and each gets the text that it would get alone.

python docs/examples/threads.py
"""

from concurrent.futures import ThreadPoolExecutor

from llama3 import Llama

QUESTIONS = [
    "What is RoPE?",
    "What is RMSNorm?",
    "What is the KV cache?",
    "What is grouped-query attention?",
    "What is SwiGLU?",
    "What is a token?",
]


def main() -> None:
    llama = Llama.load(slots=4)  # four requests run at once; each slot has cache memory of its own; further ones wait

    def ask(question: str) -> str:
        return llama.chat([{"role": "user", "content": question}], seed=3).text

    with ThreadPoolExecutor(len(QUESTIONS)) as pool:
        together = list(pool.map(ask, QUESTIONS))
    for question, answer in zip(QUESTIONS, together, strict=True):
        print(f"{question}\n  {answer}")

    alone = [ask(question) for question in QUESTIONS]
    print("\nthe same as one after the other:", together == alone)


if __name__ == "__main__":
    main()
