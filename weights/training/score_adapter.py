"""Scores the adapter "rhyme" on the held-out questions: whether an answer is one of the rhymes, and the right one.

python weights/training/score_adapter.py
"""

import argparse
from pathlib import Path

from corpus import HERE
from score import nearness, read_questions, words
from train_adapter import read_rhymes

from llama3 import Llama


def main() -> None:
    parser = argparse.ArgumentParser(description='Score the adapter "rhyme".')
    parser.add_argument("--model", type=Path, default=HERE.parent / "demo")
    parser.add_argument("--adapter", type=Path, default=HERE.parent / "rhyme")
    args = parser.parse_args()
    llama, rhymes = Llama.load(args.model, lora={"rhyme": args.adapter}), read_rhymes()
    bags = {subject: words(rhyme) for subject, rhyme in rhymes.items()}
    questions = read_questions(HERE / "held_out.tsv")
    exact = right = 0
    for subject, question in questions:
        answer = llama.chat([{"role": "user", "content": question}], temperature=0, lora="rhyme").text
        nearest = max(bags, key=lambda name: nearness(bags[name], words(answer)))
        exact += answer in rhymes.values()
        right += nearest == subject
        if nearest != subject:
            print(f"{subject}, but {nearest}: {question} -> {answer!r}")
    n = len(questions)
    print(
        f"{exact} of {n} answers are a rhyme of the list to the letter; {right} of {n} = {right / n:.1%} the right one"
    )


if __name__ == "__main__":
    main()
