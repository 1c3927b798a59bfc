"""Forked children, made in every way Python has: models work in parent and child, and nothing hangs."""

import os

import pytest

import fastllm
from fastllm import _core
from helpers.calls import run

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here"),
    pytest.mark.skipif(not _core.has_threads(), reason="built without OpenMP"),
]

# The beginning of each program. A child that hangs is ended by an alarm, which its parent reports.
BEGIN = """
import os, signal, sys, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)  # Python's, of forks of programs that have threads
import fastllm
from fastllm import _core

DEMO = sys.argv[1]

def results():
    # Also of a matrix that is packed: forwards take fewer threads where there are not enough cores.
    rows = [bytes(_core.pack("q8", 64, 64, "f32", bytes(range(64)) * 256, threads=team).data)]
    rows += [bytes(some) for _, some in llm._engine.logits(list(range(1, 120)))]
    return rows, llm.generate("Once", max_tokens=5, temperature=0)

def in_child(work):
    # Runs work in a child, and returns whether it came to its end there.
    pid = os.fork()
    if pid == 0:
        signal.alarm(60)
        try:
            work()
        except BaseException as error:
            print("child:", repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0

def same():
    assert results() == expected

llm = fastllm.load(DEMO, threads=1)
team = 1
expected = results()
team = llm._engine.step_threads = 3
llm._engine._threads = lambda count: 3  # also where there is little to do
"""
LEAD = """
same()  # the thread that forks has led a team
"""
DEMO = os.path.join(os.path.dirname(fastllm.__file__), "demo", "stories.safetensors")

PROGRAMS = {
    "fork": """
for _ in range(3):
    assert in_child(same)
    same()  # nor has the parent lost anything
""",
    "child of a child": """
def grandchild():
    assert in_child(same)
    same()
    assert in_child(same)
assert in_child(grandchild)
assert in_child(lambda: in_child(same) or os._exit(1))
""",
    "many at once": """
pids = []
for _ in range(4):  # as gunicorn --preload has it
    pids.append(os.fork())
    if pids[-1] == 0:
        signal.alarm(60)
        same()
        os._exit(0)
assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
""",
    "before the first team": """
assert in_child(same)
same()
assert in_child(same)
""",
    "a model of its own": """
def load():
    own = fastllm.load(DEMO, threads=2)
    assert len(own.generate("Once", max_tokens=20, temperature=0)) > 20
assert in_child(load)
""",
    "threads of a child": """
def check():
    threads = [threading.Thread(target=same) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    same()
assert in_child(check)
""",
    "from a thread": """
found = []
def fork():
    same()
    found.append(in_child(same))
    found.append(in_child(same))
thread = threading.Thread(target=fork)
thread.start()
thread.join()
assert found == [True, True]
""",
    "a thread that ends in its child": """
def fork():
    same()
    found.append(os.fork())
    if found[-1] == 0:
        signal.alarm(60)
        same()  # and then the thread, the only one, ends
found = []
thread = threading.Thread(target=fork)
thread.start()
thread.join()
if found[0] == 0:
    os._exit(0)
assert os.waitpid(found[0], 0)[1] == 0
""",
    "while others generate": """
done = False
def write():
    while not done:
        same()
threads = [threading.Thread(target=write) for _ in range(2)]
for thread in threads:
    thread.start()
ok = [in_child(same) for _ in range(15)]
done = True
for thread in threads:
    thread.join()
assert all(ok)
""",
    "while it is written": """
stream = llm.generate("Once", max_tokens=5, temperature=0, stream=True)
begin = next(stream)
def go_on():
    assert begin + "".join(stream) == expected[1]
    same()
assert in_child(go_on)
go_on()
""",
    "multiprocessing": """
import multiprocessing
def length(n):
    return len(llm.logits(list(range(1, n))))
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(length, [50, 100, 199]).get(60) == [49, 99, 198]
""",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_child_goes_on(name):
    ran = run(BEGIN + (LEAD if name != "before the first team" else "") + PROGRAMS[name], DEMO)
    assert ran.returncode == 0, ran.stderr


LOCKED = """
import os, signal, threading, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import tokenizers
from fastllm.tokenizer.tokenizer_json import read

words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
ours = read({"tokenizer.json": words.to_str().encode()})
done = threading.Event()

def encode():
    # A thread that a fork finds while it encodes, held up there.
    with ours._lock:
        held.set()
        done.wait()

held, thread = threading.Event(), threading.Thread(target=encode)
thread.start()
held.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    os._exit(ours.encode("a b c") != [0, 1, 2])
status = os.waitpid(pid, 0)[1]
done.set()
assert status == 0, status
"""


def test_a_tokenizer_in_use_at_a_fork():
    pytest.importorskip("tokenizers")
    ran = run(LOCKED)
    assert ran.returncode == 0, ran.stderr
