"""`Stream` with `async for`, and what its pieces, its end and its numbers look like from outside."""

import asyncio
import json
import threading

import pytest

from llama3 import Llama
from llama3.completion import Completion, Piece, Usage
from tests.tiny import TINY_VOCAB, random_tensors, tiny_config, write_hf, write_tokenizer


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Llama:
    config = tiny_config(vocab_size=TINY_VOCAB, max_seq_len=1024)
    folder = write_hf(tmp_path_factory.mktemp("llama") / "tiny", config, random_tensors(config))
    return Llama.load(write_tokenizer(folder), slots=3)


@pytest.fixture
def held_step(llama, monkeypatch):
    """(entered, leave): each step sets `entered`, and goes on when `leave` is set."""
    entered, leave, step = threading.Event(), threading.Event(), llama.model.step

    def held(*args):
        entered.set()
        assert leave.wait(60)
        return step(*args)

    monkeypatch.setattr(llama.model, "step", held)
    yield entered, leave
    leave.set()


def test_async_for_gives_the_pieces_of_for(llama):
    async def pieces(seed: int) -> list[Piece]:
        return [piece async for piece in llama.stream("Once", max_tokens=20, seed=seed)]

    async def together() -> list[list[Piece]]:
        return await asyncio.gather(*map(pieces, range(8)))  # more than there are slots

    assert asyncio.run(together()) == [llama.generate("Once", max_tokens=20, seed=seed).pieces for seed in range(8)]


def test_the_event_loop_goes_on_while_a_token_is_awaited(llama, held_step):
    entered, leave = held_step

    async def main() -> Piece:
        first = asyncio.ensure_future(anext(llama.stream("Once", max_tokens=2)))
        while not entered.is_set():
            await asyncio.sleep(0)
        assert not first.done()  # the step is held, and this coroutine runs
        leave.set()
        return await first

    assert isinstance(asyncio.run(main()), Piece)


def test_a_cancelled_task_closes_its_stream(llama, held_step):
    entered, leave = held_step
    stream = llama.stream("Once", max_tokens=500)

    async def read() -> None:
        async for _ in stream:
            pass

    async def main() -> None:
        task = asyncio.create_task(read())
        while not entered.is_set():
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert stream.finish_reason == "cancelled"
    leave.set()
    assert list(stream) == [] and not llama._engine.busy


def test_a_deadline_on_a_token_closes_the_stream(llama, held_step):
    stream = llama.stream("Once", max_tokens=500)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(anext(stream), 0.01)

    asyncio.run(main())
    assert stream.finish_reason == "cancelled"


def test_an_error_of_a_step_reaches_the_coroutine(llama, monkeypatch):
    monkeypatch.setattr(llama.model, "step", lambda *_: (_ for _ in ()).throw(MemoryError("no room")))

    async def main() -> None:
        with pytest.raises(MemoryError, match="no room"):
            async for _ in llama.stream("Once", max_tokens=5):
                pass

    asyncio.run(main())


def test_no_thread_is_left_behind(llama):
    async def main() -> None:
        async for _ in llama.stream("Once", max_tokens=3):
            pass
        async for _ in llama.stream("Once", max_tokens=3):
            break

    asyncio.run(main())
    workers = [thread for thread in threading.enumerate() if thread.name.startswith("llama3-stream")]
    for worker in workers:
        worker.join(30)
    assert not any(worker.is_alive() for worker in workers)


def test_reprs_are_one_short_line(llama):
    stream = llama.stream("Once", max_tokens=5, seed=1)
    next(stream)
    assert repr(stream) == "<Stream: 1 of at most 5 tokens read, prompt 5 tokens, seed 1, finish_reason None>"
    assert repr(llama).startswith("<Llama: tiny on cpu, ") and repr(llama).endswith(" parameters, 3 slots>")
    answer = Completion("a\n" * 500, [1, 2], "stop", Usage(3, 2), 7, [])
    cut = "a\n" * 19 + "a…"
    assert repr(answer) == f"<Completion: {cut!r}, 2 tokens, finish_reason 'stop', seed 7>"
    for thing in (stream, llama, answer, stream.completion()):
        assert "\n" not in repr(thing) and len(repr(thing)) < 160


def test_answers_become_dictionaries_that_json_can_hold(llama):
    answer = llama.generate("Once", max_tokens=4, seed=1, logprobs=2)
    found = json.loads(json.dumps(answer.as_dict(), allow_nan=False))
    assert found.keys() == {"text", "tokens", "finish_reason", "usage", "seed", "pieces"}
    assert (found["text"], found["tokens"], found["seed"]) == (answer.text, answer.tokens, 1)
    assert found["usage"] == {"prompt_tokens": 5, "completion_tokens": 4, "total_tokens": 9} == answer.usage.as_dict()
    for got, piece in zip(found["pieces"], answer.pieces, strict=True):
        assert (got["token"], got["logprob"]) == (piece.token, piece.logprob)
        assert [tuple(pair) for pair in got["top_logprobs"]] == list(piece.top_logprobs)
    impossible = Piece("", 1, float("-inf"), ((2, float("-inf")),), None).as_dict()
    assert impossible["logprob"] is None and impossible["top_logprobs"] == [[2, None]]
