"""Results do not depend on the caller's rounding mode, nor on whether it flushes subnormal numbers to zero."""

import platform
import sys

import numpy as np
import pytest

from helpers import writers
from helpers.calls import run
from helpers.writers import SMALL

# Architecture -> at which byte of its fenv_t the control word is, and the bits that a test sets in it.
MODES = {
    "x86_64": (28, {"zero for subnormals": 0x8040, "down": 0x2000, "up": 0x4000, "toward zero": 0x6000}),
    "aarch64": (0, {"zero for subnormals": 1 << 24, "down": 2 << 22, "up": 1 << 22, "toward zero": 3 << 22}),
}

PROGRAM = """
import ctypes, os, struct, sys
import numpy as np
import fastllm
from fastllm import _core
from fastllm.weights.convert import convert

path, out, at, bits = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
libm = ctypes.CDLL("libm.so.6")

def change():
    env = ctypes.create_string_buffer(64)
    assert libm.fegetenv(env) == 0
    word, = struct.unpack_from("I", env, at)
    struct.pack_into("I", env, at, word | bits)
    assert libm.fesetenv(env) == 0

tiny, three = np.float32(1e-40), np.float32(3)

def mode():
    # What numpy makes of a subnormal number, and of thirds.
    return (tiny * three).tobytes() + (np.float32(1) / three).tobytes() + (-np.float32(1) / three).tobytes()

def results():
    llm = fastllm.load(path, threads=2)
    tokens = list(range(3, 40))
    yield "logits", llm.logits(tokens).tobytes()
    yield "hidden states", llm.hidden_states(tokens).tobytes()
    yield "embeddings", llm.embed([tokens], normalize=True).tobytes()
    options = dict(max_tokens=30, seed=1, repetition_penalty=1.1, logit_bias={7: 0.1})
    for more in ({}, {"top_p": 1.0, "temperature": 1.3}, {"typical_p": 0.7}, {"min_p": 0.1}, {"top_k": 5}):
        yield f"text, {more}", llm.generate(tokens, **more, **options).encode()
    for dtype in ("f32", "f16", "bf16", "q8", "q4"):
        convert(path, out, dtype=dtype)
        with open(out, "rb") as file:
            yield f"weights as {dtype}", file.read()
        os.remove(out)
    y, row = np.zeros((3, 48), np.float32), np.zeros(64, np.float32)
    for dtype in ("f32", "bf16", "q8", "q4"):
        for threads in (1, 2):
            matrix = _core.pack(dtype, 40, 64, "f32", memoryview(weights).cast("B"), threads=threads)
            matrix.multiply(x, y, threads=threads)
            yield f"products with {dtype}", y.tobytes()
        matrix.row(7, row)
        yield f"row of {dtype}", row.tobytes()
    sums = np.zeros((3, 64), np.float32)
    _core.attend(x, x, small, [1, 2, 3], sums)
    yield "attention", sums.tobytes()

rng = np.random.default_rng(0)
weights = (rng.standard_normal((40, 64)) * 1e-38).astype(np.float32)
x = rng.standard_normal((3, 64)).astype(np.float32)
small = x * tiny
before = mode()
want = dict(results())
change()
changed = mode()
assert changed != before, "nothing was changed"
wrong = [name for name, got in results() if got != want[name]]
assert mode() == changed, "the caller's mode is not its own any more"
print(*wrong, sep=chr(10))
sys.exit(bool(wrong))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in MODES, reason="how a mode is set is not known here"
)
@pytest.mark.parametrize("name", next(iter(MODES.values()))[1])
def test_modes_of_the_caller(tmp_path, name):
    weights = writers.random_weights(SMALL)
    weights["head"] = (weights["head"] * np.float32(1e-39)).astype(np.float32)
    weights["layers.0.ffn.w2"] *= np.float32(1e-38)
    path = tmp_path / "model.bin"
    path.write_bytes(writers.v0(SMALL, weights))
    (tmp_path / "tokenizer.bin").write_bytes(writers.tokenizer_bin(writers.tokenizer_words(SMALL.vocab_size)))
    at, bits = MODES[platform.machine()]
    ran = run(PROGRAM, path, tmp_path / "out.safetensors", at, bits[name])
    assert ran.returncode == 0, ran.stdout + ran.stderr
