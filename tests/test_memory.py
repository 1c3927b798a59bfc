"""What a mapped model takes of memory: its file, which others may share, its keys and values, and little else."""

import os
import sys

import pytest

from conftest import run
from fastllm import _core, store
from fastllm.config import Config, rope_freqs

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
    """220 MB of weights, all zero: a second copy of any part that matters would be seen."""
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
    assert mapped.stat().st_size > 2 * (kv_bytes + BESIDE)  # else a copy could hide in it
    assert kilobytes(done.stdout, "RssAnon") < kv_bytes + BESIDE
    assert kilobytes(done.stdout, "VmHWM") < mapped.stat().st_size + kv_bytes + BESIDE
