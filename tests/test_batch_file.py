"""The files of a batch: odd lines are read, a cut at any byte changes no answer, other files are kept."""

import io
import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from llama3.batch import in_order
from llama3.batch_file import AnswerFile, read_lines
from llama3.batch_request import Line
from llama3.errors import Llama3Error, RequestError
from llama3.limits import LIMITS

REQUESTS = [
    b'{"custom_id": "a", "url": "/v1/chat/completions", "body": {}}',
    b'{"custom_id": "b", "prompt": "b"}',
    b"no JSON",
    b'{"prompt": "c"}',
    b'{"custom_id": "\xc3\xa9", "url": "/v1/responses", "body": {}}',
]


def stand_in(request: bytes) -> Line:
    """Answers at once, in the form that the request asks for. Nothing in it is drawn."""
    try:
        fields = json.loads(request)
    except ValueError:
        return Line(b'{"id":"batch_req_0","custom_id":null,"response":null,"error":{}}', 0, "no JSON")
    custom_id = json.dumps(fields.get("custom_id"), ensure_ascii=False).encode()
    if "prompt" in fields:
        return Line(b'{"custom_id":%s,"result":{"response":"\xe2\x82\xac"}}' % custom_id, 1)
    return Line(b'{"id":"batch_req_1","custom_id":%s,"response":{}}' % custom_id, 1)


def answer_all(source: bytes, target: Path) -> int:
    """Answer what is left -> how many answers were there before."""
    lines = read_lines(io.BytesIO(source))
    answers = AnswerFile(str(target), lines)
    before = answers.n
    try:
        list(answers.append(map(stand_in, lines), most_failures=4))
    finally:
        answers.close()
    return before


# ---- reading


def test_lines_are_read_as_they_stand():
    text = "\ufeff{1}\r\n\n  \n{2}\n\u2028 {3}".encode()
    assert list(read_lines(io.BytesIO(text))) == [b"{1}", b"{2}", "\u2028 {3}".encode()]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_a_line_that_is_too_long_is_cut_off_and_the_next_one_is_whole(end: bytes):
    class Endless(io.RawIOBase):
        """100 MB of one letter, then another line."""

        left, rest = 100 << 20, b"\nlast" + end

        def readable(self) -> bool:
            return True

        def readinto(self, buffer: bytearray) -> int:
            n = min(len(buffer), self.left)
            if n:
                buffer[:n] = b"a" * n
                self.left -= n
                return n
            part, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
            buffer[: len(part)] = part
            return len(part)

    long, last = read_lines(io.BufferedReader(Endless(), 1 << 16))
    assert len(long) == LIMITS.body_bytes + 1 and last == b"last"
    most = b"a" * LIMITS.body_bytes
    assert [len(line) for line in read_lines(io.BytesIO(most + b"\n" + most + b"bc\n"))] == [len(most), len(most) + 1]


# ---- going on


def test_a_file_that_is_cut_at_any_byte_is_continued_to_the_same_answers(tmp_path: Path):
    source, target = b"\n".join(REQUESTS) + b"\n", tmp_path / "answers.jsonl"
    assert answer_all(source, target) == 0
    whole = target.read_bytes()
    assert [json.loads(line).get("custom_id") for line in whole.splitlines()] == ["a", "b", None, None, "é"]
    for cut in range(len(whole) + 1):
        target.write_bytes(whole[:cut])
        assert answer_all(source, target) == whole[:cut].count(b"\n")
        assert target.read_bytes() == whole
    assert answer_all(source + b'{"prompt": "one more"}', target) == len(REQUESTS)
    assert target.read_bytes().count(b"\n") == len(REQUESTS) + 1


@pytest.mark.parametrize(
    ("found", "says"),
    [
        (b"my notes\n", "line 1 is no answer of a batch"),
        (b"my notes", "line 1 is no answer of a batch"),
        (b'{"custom_id":"z","result":{}}\n', "line 1 is not the answer to request 1"),
        (b"".join(stand_in(r).text + b"\n" for r in REQUESTS[:2]) + b"[1]", "line 3 is no answer"),
        (b"".join(stand_in(r).text + b"\n" for r in REQUESTS[1:]), "line 1 is not the answer to request 1"),
        (b"".join(stand_in(REQUESTS[k]).text + b"\n" for k in (0, 1, 3)), "line 3 is not the answer to request 3"),
        (b"".join(stand_in(r).text + b"\n" for r in [*REQUESTS, *REQUESTS]), "line 6 answers a request after the last"),
        (b"\n".join(REQUESTS), "line 1 is not the answer to request 1"),
        (b'{"custom_id":"a","prompt":"a"}', "line 1 is no answer"),
        (b"\0" * 100, "line 1 is no answer"),
    ],
)
def test_a_file_that_holds_anything_else_is_left_as_it_is(tmp_path: Path, found: bytes, says: str):
    target = tmp_path / "answers.jsonl"
    target.write_bytes(found)
    with pytest.raises(RequestError, match=says) as caught:
        answer_all(b"\n".join(REQUESTS), target)
    assert "nothing was changed; give its own requests, or another file" in str(caught.value)
    assert target.read_bytes() == found


def test_a_pipe_is_not_continued(tmp_path: Path):
    target = tmp_path / "answers.jsonl"
    target.write_bytes(stand_in(REQUESTS[0]).text + b"\n")
    with pytest.raises(RequestError, match="a pipe cannot be continued; give another file"):
        AnswerFile(str(target), None)
    (tmp_path / "empty.jsonl").touch()
    assert AnswerFile(str(tmp_path / "empty.jsonl"), None).n == 0


def test_two_processes_do_not_write_one_file(tmp_path: Path):
    pytest.importorskip("fcntl", reason="Windows has no such lock")
    answers = AnswerFile(str(tmp_path / "answers.jsonl"), iter(()))
    with pytest.raises(RequestError, match="another process is writing"):
        AnswerFile(str(tmp_path / "answers.jsonl"), iter(()))
    answers.close()
    AnswerFile(str(tmp_path / "answers.jsonl"), iter(())).close()


# ---- failures


def test_a_full_disk_is_one_line_that_says_how_to_go_on():
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(Llama3Error, match="/dev/full: No space left on device; /dev/full has 0 answers: run the same"):
        answer_all(REQUESTS[0], Path("/dev/full"))


def test_a_write_that_took_only_a_part_is_completed(tmp_path: Path):
    class Reluctant(io.FileIO):
        def write(self, data: memoryview) -> int:  # type: ignore[override]
            return super().write(data[:3])

    target = tmp_path / "answers.jsonl"
    answers = AnswerFile(str(target), iter(()))
    answers.close()
    answers.file = Reluctant(target, "r+b")
    list(answers.append(iter([Line(b'{"custom_id":null}', 0)] * 2), 4))
    assert target.read_bytes() == b'{"custom_id":null}\n' * 2


def test_a_model_that_has_died_writes_no_answers(tmp_path: Path):
    """A few failures between answers are answers. Many in a row are not written, so that a second run answers them."""
    ok, bad = Line(b'{"custom_id":"good"}', 1), Line(b'{"custom_id":"bad"}', 0, "device lost", True)
    target = tmp_path / "answers.jsonl"

    def append(*lines: Line) -> None:
        target.unlink(missing_ok=True)
        answers = AnswerFile(str(target), iter(()))
        try:
            list(answers.append(iter(lines), 3))
        finally:
            answers.close()

    append(bad, bad, ok, bad, bad)
    assert target.read_bytes().count(b"bad") == 4
    with pytest.raises(Llama3Error, match=r"failed 3 times in a row: device lost; .* has 3 answers: run the same"):
        append(bad, bad, ok, bad, bad, bad, ok)
    assert [json.loads(line)["custom_id"] for line in target.read_text().splitlines()] == ["bad", "bad", "good"]


@pytest.mark.slow
def test_100_000_requests_take_no_more_memory_than_1_000(tmp_path: Path):
    statm = Path("/proc/self/statm")
    if not statm.exists():
        pytest.skip("this system has no /proc")
    dice = random.Random(0)

    def requests() -> Iterator[bytes]:
        for k in range(100_000):
            yield b'{"custom_id":"%d","prompt":"%s"}' % (k, b"x" * dice.randrange(2000))

    def resident() -> int:
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    before, answers = 0, AnswerFile(str(tmp_path / "answers.jsonl"), iter(()))
    for n, _ in enumerate(answers.append(in_order(requests(), stand_in, 4), 16), 1):
        before = resident() if n == 1000 else before
    assert n == 100_000 and resident() - before <= 5 << 20
    answers.close()
