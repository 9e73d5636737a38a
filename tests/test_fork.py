"""A process that forks, and objects that cross to another process: what works there works, the rest says why not."""

import copy
import os
import pickle
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from llama3 import Llama
from llama3.errors import DeviceError, RequestError
from llama3.turns import Turns

ROOT = Path(__file__).parents[1]

FORKS = """
import os, sys, threading, warnings
from threadpoolctl import threadpool_info
from llama3 import Llama, RequestError
warnings.simplefilter("ignore")  # Python 3.12 warns of any fork beside threads
llama = Llama.load(slots=2)
blas = lambda: [library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"]
parameters = {"max_tokens": 3, "temperature": 0}
expected, threads = llama.generate("The KV cache", **parameters).text, blas()
endless, stop = {"max_tokens": 1900, "logit_bias": dict.fromkeys(llama.checkpoint.stop_ids, -100)}, False

def generate():
    while not stop:
        llama.generate("The softmax " * 40, max_tokens=2, temperature=0)
        llama.logits([1, 2, 3])

thread = threading.Thread(target=generate, daemon=True)
thread.start()
for i in range(15):
    going = llama.stream("RoPE", **endless)
    next(going)
    child = os.fork()
    if not child:
        try:
            same = llama.generate("The KV cache", **parameters).text == expected and blas() == threads
            try:
                for piece in going:  # those that were drawn before the fork
                    pass
                os._exit(3)
            except RequestError as error:
                os._exit(0 if same and "before a fork" in str(error) else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    next(going)
    going.close()

def fork_inside(name, value):
    global inside
    if name == "norm":
        inside = os.fork()

logits = llama.logits([1, 2, 3], trace=fork_inside)  # in both processes the forward pass goes on
if not inside:
    os._exit(0 if (llama.logits([1, 2, 3]) == logits).all() else 1)
assert os.waitpid(inside, 0)[1] == 0
stop = True
thread.join()
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_child_generates_while_the_parent_s_threads_go_on():
    """Children and parent go on, with BLAS's threads; an answer that was begun before the fork is the parent's."""
    ran = subprocess.run([sys.executable, "-c", FORKS], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert ran.stdout == "done\n", ran.stderr


def test_a_turn_that_another_thread_held_is_free_after_a_fork():
    turns, entered, leave = Turns(), threading.Event(), threading.Event()
    holder = threading.Thread(target=lambda: turns.run(lambda: (entered.set(), leave.wait())))
    holder.start()
    entered.wait()
    turns.after_fork(None)
    ran = []
    turns.run(lambda: ran.append(1))
    leave.set()
    holder.join()
    assert ran == [1]


def test_what_cannot_work_in_the_child_is_refused_there():
    turns = Turns()
    turns.after_fork(DeviceError("load it in the new process"))
    with pytest.raises(DeviceError, match="in the new process"):
        turns.run(lambda: None)


def test_a_forked_child_ends_the_answers_of_its_parent(tmp_path):
    llama = Llama.load()
    stream, waiting = llama.stream("RoPE", max_tokens=5), llama.stream("RoPE", max_tokens=5)
    next(stream)
    llama._after_fork()
    for begun in (stream, waiting):
        with pytest.raises(RequestError, match="before a fork"):
            next(begun)
    assert not llama._engine.busy and len(llama.generate("RoPE", max_tokens=5, temperature=0).tokens) == 5


@pytest.mark.parametrize("send", [pickle.dumps, copy.copy, copy.deepcopy])
def test_a_llama_and_a_stream_say_why_they_cannot_be_pickled(send):
    llama = Llama.load()
    with pytest.raises(TypeError, match=r"^a Llama cannot be pickled: .* Llama.load\(.*\) in the other process"):
        send(llama)
    with pytest.raises(TypeError, match=r"^a Stream cannot be pickled: send its pieces"):
        send(llama.stream("x"))
    answer = llama.generate("x", max_tokens=2)
    assert pickle.loads(pickle.dumps(answer)) == answer
