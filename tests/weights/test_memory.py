"""The memory of a mapped model: its file, which processes share, its keys and values, and little else."""

import os
import sys

import pytest

from fastllm import _core
from fastllm.config import Config, rope_freqs
from fastllm.weights import store
from helpers.calls import run

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "ASAN_OPTIONS" in os.environ, reason="memory as Linux counts it, without a sanitizer's"
)

BESIDE = 60 << 20

_CHILD = """
import sys
import fastllm
llm = fastllm.load(sys.argv[1], threads=int(sys.argv[2]))
assert len(llm.generate([i % 1000 for i in range(512)], max_tokens=64, seed=0)) == 64
llm.read_bandwidth()  # as run does at its end
print(open("/proc/self/status").read())
"""


def kilobytes(status: str, name: str) -> int:
    return int(status.split(f"{name}:")[1].split(maxsplit=1)[0]) << 10


@pytest.fixture(scope="module")
def mapped(tmp_path_factory):
    """A model with 220 MB of weights, large enough that a second copy of a part would show."""
    cfg = Config(
        dim=1024, hidden_dim=2816, head_dim=64, n_layers=16, n_heads=16, n_kv_heads=4, vocab_size=32000, max_seq=1024,
        rotary_dim=64, norm_eps=1e-5, attn_scale=0.125,
    )  # fmt: skip
    parts = {}
    for name, (d, n), required in cfg.matrices():
        if required:
            size = _core.matrix_bytes("q8", d, n)
            parts[name] = store.Part("q8", (d, n), size, (bytes(size),))
    parts["rope.freqs"] = store.Part(None, (32,), 128, (rope_freqs(10000.0, 64),))
    path = tmp_path_factory.mktemp("mapped") / "model.safetensors"
    store.write(path, store.Stored(cfg, {}, bos=None, stop=(), chat_stop=()), parts)
    return path


@pytest.mark.parametrize("threads", [1, 2])
def test_a_mapped_model_is_not_copied(mapped, threads):
    done = run(_CHILD, mapped, threads)
    assert done.returncode == 0, done.stderr
    kv_bytes = 16 * 2 * 4 * 64 * (512 + 64) * 2  # layers, keys and values, heads, channels, positions, f16
    assert mapped.stat().st_size > 2 * (kv_bytes + BESIDE)  # else a copy of the weights could go unnoticed
    assert kilobytes(done.stdout, "RssAnon") < kv_bytes + BESIDE
    assert kilobytes(done.stdout, "VmHWM") < mapped.stat().st_size + kv_bytes + BESIDE


_SAMPLERS = """
from fastllm import _core
from fastllm.decoding import Sampling
options, vocab = Sampling(top_p=0.9, repetition_penalty=1.1), 262_144
logits, samplers = _core.Buffer(vocab * 4), []
for i in range(201):
    samplers.append(_core.Sampler(vocab, options, seed=i))
    for token in range(100):
        samplers[-1].accept(token, generated=False)
    samplers[-1].draw(logits)
    if i in (0, 200):
        print(open("/proc/self/status").read())
"""


def test_a_sampler_holds_little_of_a_large_vocabulary():
    done = run(_SAMPLERS)
    assert done.returncode == 0, done.stderr
    before, after = (kilobytes(status, "RssAnon") for status in done.stdout.split("\nName:"))
    assert after - before < 200 * (16 << 10)


_TEXTS = """
import sys, gc
import fastllm
from fastllm import _core
model = fastllm.load(sys.argv[1], threads=1)._model
cache = _core.KVCache(model)
def report():
    gc.collect()
    print(open("/proc/self/status").read())
first = cache.sequence()
model.forward([(first, [1] * 64, 0)])
report()
for _ in range(2):
    texts = [cache.sequence() for _ in range(12)]
    for start in range(0, 1024, 64):
        model.forward([(text, [1] * 64, 0) for text in texts[:1]])
    for text in texts[1:]:
        model.forward([(text, [1] * 64, 0)])
    report()
    del text, texts
    report()
"""


def test_memory_of_texts_that_are_gone_goes_back(mapped):
    """Memory of ended texts is returned, except a spare slab and slabs that pages in use share."""
    done = run(_TEXTS, mapped)
    assert done.returncode == 0, done.stderr
    before, *pairs = (kilobytes(status, "RssAnon") for status in done.stdout.split("\nName:"))
    page = 16 * 2 * 4 * 64 * 64 * 2  # layers, keys and values, heads, channels, positions, bytes of f16
    for during, after in zip(pairs[::2], pairs[1::2], strict=True):
        assert during - before > 25 * page
        assert after - before < 2 * (4 << 20) + (2 << 20)
