"""Scores the demo checkpoint on the held-out questions, with greedy decoding.

    python weights/training/score.py                 # with this project's implementation
    python weights/training/score.py --transformers  # with transformers

The rule was fixed before the first training. An answer is right if
(a) the reference answer nearest to it, among all answers of all subjects, belongs to the expected subject, where
    nearness is twice the number of common words divided by the number of words in both answers, and
(b) it contains at least one of the subject's key terms (`keys:` in the subject's file).
A comparison of two subjects belongs to both.
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path

from corpus import HERE, Corpus

Answerer = Callable[[str], str]


def words(text: str) -> Counter[str]:
    return Counter(re.findall(r"\w+", text.casefold()))


def nearness(a: Counter[str], b: Counter[str]) -> float:
    return 2 * (a & b).total() / max(1, a.total() + b.total())


class Judge:
    """Applies the rule to answers."""

    def __init__(self, corpus: Corpus) -> None:
        self.keys = {subject.id: subject.keys for subject in corpus.subjects.values()}
        self.references = [(subjects, words(answer)) for subjects, answer in corpus.references()]

    def subjects(self, answer: str) -> frozenset[str]:
        """The subjects of the nearest reference answer."""
        given = words(answer)
        return max(self.references, key=lambda reference: nearness(given, reference[1]))[0]

    def right(self, expected: str, answer: str) -> bool:
        return any(key in answer.lower() for key in self.keys[expected]) and expected in self.subjects(answer)


def with_transformers(folder: Path) -> Answerer:
    import torch
    from train import Encoder
    from train_tokenizer import load
    from transformers import LlamaForCausalLM

    torch.set_num_threads(1)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = load(folder / "tokenizer.model")
    encoder = Encoder(tokenizer)
    stops = [encoder.special["<|eot_id|>"], encoder.special["<|end_of_text|>"]]

    def answer(question: str) -> str:
        header, body, _ = encoder.message("user", question)
        ids = [encoder.special["<|begin_of_text|>"], *header, *body, *encoder.message("assistant", "")[0]]
        with torch.inference_mode():
            out = model.generate(
                torch.tensor([ids]), max_new_tokens=200, do_sample=False, temperature=None, top_p=None,
                eos_token_id=stops, pad_token_id=0,
            )  # fmt: skip
        return tokenizer.decode([token for token in out[0, len(ids) :].tolist() if token not in stops])

    return answer


def with_llama3(folder: Path) -> Answerer:
    from llama3 import Llama

    llama = Llama.load(folder)
    return lambda question: llama.chat([{"role": "user", "content": question}], temperature=0).text


def read_questions(path: Path) -> list[tuple[str, str]]:
    return [(subject, question) for subject, question in (line.split("\t") for line in path.read_text().splitlines())]


def main() -> None:
    parser = argparse.ArgumentParser(description="Score the demo checkpoint on the held-out questions.")
    parser.add_argument("--model", type=Path, default=HERE.parent / "demo")
    parser.add_argument("--questions", type=Path, default=HERE / "held_out.tsv")
    parser.add_argument("--transformers", action="store_true", help="answer with transformers instead of this project")
    parser.add_argument("--verbose", action="store_true", help="show every answer, not the wrong ones only")
    args = parser.parse_args()
    judge = Judge(Corpus())
    answerer = (with_transformers if args.transformers else with_llama3)(args.model)
    questions = read_questions(args.questions)
    tally: defaultdict[str, list[bool]] = defaultdict(list)
    for subject, question in questions:
        answer = answerer(question)
        right = judge.right(subject, answer)
        tally[subject].append(right)
        if args.verbose or not right:
            verdict, nearest = "right" if right else "WRONG", "/".join(sorted(judge.subjects(answer)))
            print(f"{verdict}  {subject} <- {nearest}\n  Q: {question}\n  A: {answer}")
    for subject, results in sorted(tally.items()):
        print(f"{subject:20} {sum(results)} of {len(results)}")
    right = sum(map(sum, tally.values()))
    print(f"score: {right} of {len(questions)} = {100 * right / len(questions):.1f} %, over {len(tally)} subjects")


if __name__ == "__main__":
    main()
