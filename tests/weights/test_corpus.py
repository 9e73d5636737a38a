"""The corpus is deterministic and complete, and no text of it shares four words in a row with a held-out question."""

import itertools
import re

from corpus import KINDS, Corpus, Message


def four_grams(text: str, gap: str) -> set[str]:
    """All sequences of four words, with punctuation replaced by `gap`. It is written differently from the corpus's."""
    words = re.sub(r"[\W_]", lambda found: " " if found.group().isspace() else gap, text.casefold()).split()
    return {" ".join(words[i : i + 4]) for i in range(len(words) - 3)}


def held_out_grams(corpus: Corpus, gap: str) -> set[str]:
    return set().union(*(four_grams(question, gap) for _, question in corpus.held_out.questions))


def contents(item: list[Message] | str) -> list[str]:
    return [item] if isinstance(item, str) else [message["content"] for message in item]


def test_the_held_out_questions_are_many_broad_and_of_four_words_or_more(corpus: Corpus) -> None:
    questions = corpus.held_out.questions
    assert len({question for _, question in questions}) == len(questions) >= 150
    subjects = {subject for subject, _ in questions}
    assert len(subjects) >= 25
    assert subjects <= corpus.subjects.keys()
    assert all(len(question.split()) >= 4 and four_grams(question, "") for _, question in questions)


def test_no_written_text_shares_four_words_in_a_row_with_a_held_out_question(corpus: Corpus) -> None:
    for gap in ("", " "):
        held_out = held_out_grams(corpus, gap)
        for text in corpus.written():
            assert not four_grams(text, gap) & held_out, text


def test_no_drawn_text_shares_four_words_in_a_row_with_a_held_out_question(corpus: Corpus) -> None:
    drawn = [text for item in itertools.islice(corpus.stream(seed=11), 1500) for text in contents(item)]
    assert len(drawn) > 3000
    for gap in ("", " "):
        held_out = held_out_grams(corpus, gap)
        assert not [text for text in drawn if four_grams(text, gap) & held_out]


def test_the_filter_has_work_to_do(corpus: Corpus) -> None:
    """Many expansions do clash with a held-out question, and the filter finds the question however it is typed."""
    expansions = [
        name.fill(template)
        for subject in corpus.technical
        for name in subject.names
        for kind in KINDS
        for template in corpus.templates[kind]
    ]
    refused = [text for text in expansions if corpus.held_out.clashes(text)]
    assert 100 < len(refused) < len(expansions) / 4
    for _, question in corpus.held_out.questions:
        assert corpus.held_out.clashes(question)
        assert corpus.held_out.clashes("Tell me: " + question.upper().rstrip("?") + " ...")


def test_a_seed_gives_one_stream(corpus: Corpus) -> None:
    first, again, other = (list(itertools.islice(corpus.stream(seed), 200)) for seed in (1, 1, 2))
    assert first == again != other


def test_a_dialogue_alternates_and_ends_with_the_assistant(corpus: Corpus) -> None:
    for item in itertools.islice(corpus.stream(seed=5), 500):
        if isinstance(item, list):
            roles = [message["role"] for message in item if message["role"] != "system"]
            assert roles == ["user", "assistant"] * (len(roles) // 2)
            assert [message["role"] for message in item].count("system") <= 1
            assert all(message["content"] == message["content"].strip() != "" for message in item)


def test_every_subject_can_be_asked_about_and_answered(corpus: Corpus) -> None:
    assert len(corpus.technical) >= 30
    for subject in corpus.subjects.values():
        assert subject.answers["what"]
        assert subject.questions.get("what")
        gaps = {gap for own in subject.questions.values() for text in own for gap in re.findall(r"{(\w+)}", text)}
        assert gaps <= subject.words.keys()
    for comparison in corpus.comparisons:
        assert set(comparison.sides) <= corpus.subjects.keys()
