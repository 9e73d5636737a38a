"""The rule that scores answers accepts every written answer for its own subject, and none for another subject."""

from corpus import Corpus
from score import Judge


def test_every_written_answer_is_right_for_its_own_subject(corpus: Corpus) -> None:
    judge = Judge(corpus)
    for subjects, answer in corpus.references():
        for subject in subjects:
            assert judge.right(subject, answer), answer


def test_an_answer_on_another_subject_is_wrong(corpus: Corpus) -> None:
    judge = Judge(corpus)
    for subject in corpus.subjects.values():
        for other in corpus.subjects:
            if other != subject.id:
                assert not judge.right(other, subject.answers["what"][0]), (subject.id, other)


def test_words_of_the_question_alone_do_not_make_an_answer_right(corpus: Corpus) -> None:
    judge = Judge(corpus)
    accepted = [question for subject, question in corpus.held_out.questions if judge.right(subject, question)]
    assert len(accepted) < len(corpus.held_out.questions)
    assert not judge.right("rope", "")
