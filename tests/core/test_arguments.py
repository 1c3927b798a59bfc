"""Arguments of _core are checked by what they convert to: they may lie about length, items or value, or change."""

import contextlib
import ctypes

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm import CheckpointError, ContextError, OptionError, _core
from fastllm.decoding import Sampling
from fastllm.errors import FastLLMError
from helpers.liars import Changes, Gives, Liar, Says
from helpers.writers import SMALL, logits_after

VOCAB = SMALL.vocab_size
TYPED = (FastLLMError, TypeError, ValueError, OverflowError, MemoryError, AttributeError, BufferError)


# ---- lengths and values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [0, 1, 100_000])
def test_tokens_are_counted_not_asked(model, length):
    expected = logits_after(model, [1, 2, 3])
    assert logits_after(model, Says([1, 2, 3], length)) == expected
    assert logits_after(model, Gives([9] * length, (1, 2, 3))) == expected


@pytest.mark.parametrize("kind", [tuple, iter, np.array, lambda x: np.array(x, np.int16), dict.fromkeys])
def test_any_iterable_of_tokens(model, kind):
    assert logits_after(model, kind([4, 2, 3])) == logits_after(model, [4, 2, 3])


def test_tokens_that_change_the_list_they_are_in(model):
    for change in (list.clear, lambda x: x.extend([1] * 10_000)):
        tokens = [1, 2]
        tokens.append(Changes(3, tokens, change))
        assert logits_after(model, tokens) == logits_after(model, [1, 2, 3])


def test_spans_that_change_while_they_are_read(model):
    cache = _core.KVCache(model)
    spans = []
    spans += [(cache.sequence(), [1, Changes(2, spans, list.clear)], Changes(0, spans, list.clear)) for _ in range(3)]
    sequences = [sequence for sequence, _, _ in spans]
    model.forward(spans)
    assert [sequence.length for sequence in sequences] == [2, 2, 2]


def test_tokens_that_use_their_own_sequence(model):
    """Python code that a conversion runs during a forward finds the sequence in use."""
    sequence = _core.KVCache(model).sequence()
    found = []

    def meddle(_):
        with pytest.raises(OptionError, match=r"in use|cannot be cut"):
            sequence.truncate(0)
        with pytest.raises(OptionError, match="in use"):
            model.forward([(sequence, [1], 0)])
        found.append(1)

    model.forward([(sequence, [5, Changes(6, None, meddle)], 0)])
    assert found
    assert sequence.length == 2


@pytest.mark.parametrize("value", [VOCAB, 2**31 - 1, -1, -(2**31), 2**40, 2**70])
def test_numbers_that_lie(model, value):
    cache, rows = _core.KVCache(model), model.logits()
    sequence, sampler = cache.sequence(), _core.Sampler(VOCAB, Sampling(), seed=1)
    buffer = _core.Buffer(4096)
    for attempt in (
        lambda: model.forward([(sequence, [Liar(value)], 0)]),
        lambda: model.step(sequence, Liar(value), sampler, rows),
        lambda: sampler.accept(Liar(value), generated=True),
        lambda: model.forward([(sequence, [1], 0)], hidden={Liar(value): buffer}),
        lambda: model.forward([(sequence, [1], 0)], attention={Liar(value): buffer}),
        lambda: model.forward([(sequence, [1], 0)], inputs={Liar(value): buffer}),
        lambda: _core.Sampler(VOCAB, Sampling(), seed=1, bias={Liar(value): 1.0}),
    ):
        with pytest.raises(TYPED):
            attempt()
        assert sequence.length == 0
    assert 0 <= model.step(sequence, 1, sampler, rows) < VOCAB  # nothing stayed in use


def test_seen_is_counted():
    one = np.ones((3, 16), np.float32)
    out = np.zeros((3, 16), np.float32)
    _core.attend(one, one, one, Says([1, 2, 3], 70), out)
    assert (out == 1).all()
    for wrong in (Says([1, 2], 3), Gives([1, 2, 3], [1] * 100), [1, 2, Liar(4)], [1, 2, Liar(0)], [1, 2, 4], [0, 1, 2]):
        with pytest.raises(TYPED):
            _core.attend(one, one, one, wrong, out)


def test_words_that_change_while_they_are_written():
    words = [b"a", b"b"]

    class Score:
        def __float__(self):
            words[1] = b"x" * 100_000
            return 1.0

    written = _core.write_proto_pieces(words, [Score(), 2.0], [1, 1])
    assert _core.proto_pieces(written)[0] == [b"a", b"b"]


def test_rows_outside_the_source():
    rows = (ctypes.c_int32 * 2)(0, 5)
    with pytest.raises(CheckpointError):
        _core.pack("f32", 2, 32, "f32", bytes(2 * 32 * 4), rows=rows)


# ---- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("huge", [2**31, 2**48, 2**54, 2**58, 2**60, 2**62 + 1, 2**63, 2**64 - 1])
def test_sizes_that_overflow(model, huge):
    """Their products wrap around to small numbers."""
    sequence, rows = _core.KVCache(model).sequence(), model.logits()
    sampler = _core.Sampler(VOCAB, Sampling(), seed=1)
    some = bytes(128)
    for attempt in (
        lambda: model.logits(max(huge, 2**48)),
        lambda: sampler.draw(rows, huge),
        lambda: model.forward([(sequence, [1], huge)], rows),
        lambda: sequence.truncate(huge),
        lambda: _core.Matrix("f32", huge, 32, some),
        lambda: _core.Matrix("f32", 16, 32, some, count=huge),
        lambda: _core.pack("q4", huge + 1, 32, "f32", some),
        lambda: _core.pack("f32", 32, huge + 1, "f32", some),
        lambda: _core.Sampler(huge, Sampling(), seed=1),
    ):
        with pytest.raises(TYPED):
            attempt()
    assert sequence.length == 0


@pytest.mark.parametrize("threads", [0, 3])
def test_any_number_of_threads(model, threads):
    sequence, rows = _core.KVCache(model).sequence(), model.logits()
    model.forward([(sequence, [1, 2], 1)], rows, threads=threads)
    assert bytes(rows) == logits_after(model, [1, 2])


def test_negative_numbers(model):
    sequence, rows = _core.KVCache(model).sequence(), model.logits()
    sampler = _core.Sampler(VOCAB, Sampling(), seed=1)
    for attempt in (
        lambda: sampler.draw(rows, -1),
        lambda: model.logits(-1),
        lambda: model.forward([(sequence, [1], -1)], rows),
        lambda: model.forward([(sequence, [1], 0)], threads=-1),
        lambda: sequence.truncate(-1),
        lambda: _core.Buffer(-1),
    ):
        with pytest.raises(OverflowError):
            attempt()
    for count in (2, 3):
        with pytest.raises(OptionError, match="of 1 tokens"):
            model.forward([(sequence, [1], count)], model.logits(4))
    with pytest.raises(ContextError):
        model.forward([(sequence, [], 0)])


def test_nothing_where_something_is_needed(model):
    """None where an object or memory is needed, and memory of no bytes."""
    sequence, rows = _core.KVCache(model).sequence(), model.logits()
    sampler, none = _core.Sampler(VOCAB, Sampling(), seed=1), None
    floats, empty = np.zeros((1, 32), np.float32), np.zeros((0, 0), np.float32)
    matrix = _core.pack("f32", 16, 32, "f32", bytes(16 * 32 * 4))
    for attempt in (
        lambda: model.forward(none),
        lambda: model.forward([(none, [1], 0)]),
        lambda: model.forward([(sequence, none, 0)]),
        lambda: model.forward([(sequence, [1], 1)], none),
        lambda: model.forward([(sequence, [1], 0)], hidden={0: none}),
        lambda: model.step(none, 1, sampler, rows),
        lambda: model.step(sequence, 1, none, rows),
        lambda: model.step(sequence, 1, sampler, none),
        lambda: sampler.draw(none),
        lambda: sampler.draw(_core.Buffer(0)),
        lambda: _core.KVCache(none),
        lambda: _core.Sequence(none),
        lambda: _core.Model(SMALL, none),
        lambda: _core.Matrix("f32", 16, 32, none),
        lambda: _core.Vector(none),
        lambda: _core.Vector(b""),
        lambda: matrix.row(0, none),
        lambda: matrix.row(0, empty[0:0].reshape(-1)),
        lambda: matrix.multiply(none, floats),
        lambda: matrix.multiply(floats, none),
        lambda: matrix.multiply(empty, empty),
        lambda: _core.pack("f32", 1, 1, "f32", none),
        lambda: _core.pack("f32", 1, 1, "f32", b""),
        lambda: _core.factor(none, floats[0]),
        lambda: _core.factor(np.zeros((0, 0)), empty.reshape(-1)),
        lambda: _core.dequantize("Q4_0", none, floats[0]),
        lambda: _core.attend(none, floats, floats, [1], floats),
        lambda: _core.attend(empty, floats, floats, [], floats),
        lambda: _core.read_memory(none),
        lambda: _core.llama2c_words(none),
        lambda: _core.byte_names(none),
        lambda: _core.byte_names([none]),
        lambda: _core.byte_names(["<0x00>"]),
        lambda: _core.proto_fields(none),
        lambda: _core.proto_pieces(none),
        lambda: _core.write_proto_pieces([none], [0.0], [1]),
        lambda: _core.write_proto_pieces(["a"], [0.0], [1]),
        lambda: _core.write_proto_pieces(none, none, none),
    ):
        with pytest.raises(TYPED):
            attempt()
    assert _core.read_memory(b"") == 0
    assert _core.llama2c_words(b"") == ([], [])
    assert _core.proto_fields(b"") == []


def test_memory_of_another_shape():
    """Arrays that are not contiguous rows, or not writable, are refused and not read as if they were."""
    matrix = _core.pack("f32", 16, 32, "f32", bytes(16 * 32 * 4))
    x, out = np.zeros((2, 32), np.float32), np.zeros((2, 16), np.float32)
    matrix.multiply(x, out)
    fixed = out.copy()
    fixed.flags.writeable = False
    for bad in (np.zeros((32, 2), np.float32).T, np.zeros((2, 64), np.float32)[:, ::2], x.astype(np.float64), x[0]):
        with pytest.raises(ValueError, match=r"contiguous|mismatch|dimensions"):
            matrix.multiply(bad, out)
    for bad in (fixed, np.zeros((16, 2), np.float32).T):
        with pytest.raises(ValueError, match=r"contiguous|read-only"):
            matrix.multiply(x, bad)


# ---- anything at all -------------------------------------------------------------------------------------------------

odd = (
    st.none()
    | st.booleans()
    | st.integers(-(2**65), 2**65)
    | st.integers(-2, VOCAB + 2)
    | st.floats()
    | st.text(max_size=3)
    | st.binary(max_size=70)
    | st.lists(st.integers(-1, VOCAB) | st.none() | st.floats(), max_size=4)
    | st.sampled_from([np.int8(3), np.float32(2), np.zeros(0), np.zeros((2, 3), np.float32), np.zeros(16, np.float32)])
    | st.builds(Liar, st.integers(-(2**33), 2**33))
    | st.builds(Says, st.lists(st.integers(0, 5), max_size=3), st.integers(0, 1 << 20))
)


@given(st.data())
def test_whatever_comes(model, data):
    """Wrong arguments of any kind end in an exception or a result; AddressSanitizer finds no access out of bounds."""
    draw = lambda: data.draw(odd)  # noqa: E731
    cache = _core.KVCache(model)
    sequence, sampler = cache.sequence(), _core.Sampler(VOCAB, Sampling(), seed=1)
    rows = model.logits()
    attempts = (
        lambda: model.forward([(sequence, draw(), draw())], rows),
        lambda: model.forward([(sequence, [1, draw()], 1)], draw()),
        lambda: model.forward([draw()]),
        lambda: model.forward([(sequence, [1], 0)], hidden={draw(): _core.Buffer(data.draw(st.integers(0, 300)))}),
        lambda: model.forward([(sequence, [1], 0)], attention=draw()),
        lambda: model.step(sequence, draw(), sampler, rows),
        lambda: sampler.draw(rows, draw()),
        lambda: sampler.accept(draw(), generated=draw()),
        lambda: sequence.truncate(draw()),
        lambda: _core.Matrix("q8", draw(), draw(), draw()),
        lambda: _core.Vector(draw()),
        lambda: _core.pack("q4", draw(), draw(), "f32", draw(), rows=draw()),
        lambda: _core.dequantize("Q4_0", draw(), draw()),
        lambda: _core.factor(draw(), draw()),
        lambda: _core.attend(draw(), draw(), draw(), draw(), draw()),
        lambda: _core.llama2c_words(draw()),
        lambda: _core.byte_names(draw()),
        lambda: _core.proto_pieces(draw()),
        lambda: _core.write_proto_pieces(draw(), draw(), draw()),
    )
    with contextlib.suppress(TYPED):
        data.draw(st.sampled_from(attempts))()
    sequence.truncate(0)
    model.forward([(sequence, [1], 1)], rows)
    assert np.isfinite(np.frombuffer(rows, np.float32)).all()
