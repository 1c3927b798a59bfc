"""Texts piece by piece: TextStream, and AsyncTextStream and agenerate for asyncio."""

import asyncio
import contextlib
import gc
import threading
import weakref

import pytest

from fastllm import OptionError, TokenizerError
from fastllm.llm import AsyncTextStream, Text, TextStream
from helpers.architectures import random_llm

PROMPT = "the ocean once"
OPTIONS = {"max_tokens": 30, "seed": 3, "temperature": 1.5, "top_p": 1.0}


def facts(text):
    """What must be the same of a text, however it was written: all but its times and what was cached."""
    found = {name: getattr(text, name) for name in Text.__annotations__}
    return {name: value for name, value in found.items() if "seconds" not in name and name != "cached_tokens"}


# ---- TextStream ------------------------------------------------------------------------------------------------------


def test_a_stream_has_the_attributes_of_the_text(llm):
    whole = llm.generate(PROMPT, logprobs=1, echo=True, **OPTIONS)
    stream = llm.generate(PROMPT, logprobs=1, echo=True, stream=True, **OPTIONS)
    assert isinstance(stream, TextStream)
    assert (stream.text, stream.tokens, stream.finish_reason, stream.seed) == ("", [], None, 3)
    taken = ""
    for piece in stream:
        taken += piece
        assert stream.text == taken
        assert type(stream.text) is Text
        assert stream.tokens == whole.tokens[: len(stream.tokens)]
    assert (taken, stream.text, facts(stream), facts(stream.text)) == (whole, whole, facts(whole), facts(whole))


def test_finish_reason_comes_with_the_last_piece(llm):
    """Also where the end of the text releases pieces that were held back."""
    stream = llm.generate(PROMPT, stop="\u2603 never", stream=True, **OPTIONS)
    while stream.finish_reason is None:
        assert next(stream, None) is not None or stream.finish_reason == "length"
    assert next(stream, None) is None


def test_a_stream_is_closed_in_every_way(llm):
    whole = llm.generate(PROMPT, **OPTIONS)
    stream = llm.generate(PROMPT, stream=True, **OPTIONS)
    first = next(stream)
    stream.close()
    stream.close()
    assert (list(stream), stream.finish_reason, stream.text) == ([], "cancelled", first)
    assert whole.startswith(first)
    with llm.generate(PROMPT, stream=True, **OPTIONS) as stream:
        next(stream)
    assert (next(stream, None), stream.finish_reason) == (None, "cancelled")
    with pytest.raises(ZeroDivisionError), llm.generate(PROMPT, stream=True, **OPTIONS) as stream:
        raise ZeroDivisionError
    assert stream.finish_reason == "cancelled"
    ended = llm.generate(PROMPT, stream=True, **OPTIONS)
    assert "".join(ended) == whole
    ended.close()
    assert ended.finish_reason == whole.finish_reason == "length"
    unread = llm.generate(PROMPT, stream=True, **OPTIONS)
    unread.close()
    assert list(unread) == []
    assert llm.generate(PROMPT, **OPTIONS) == whole


def test_a_stream_that_is_left_is_freed_at_once(llm):
    """Without the cyclic garbage collector: what a text holds goes with its last reference."""
    gc.collect()
    gc.disable()
    try:
        left = []
        for stop in ((), "never", lambda text: False):
            for _ in llm.generate(PROMPT, stop=stop, stream=True, **OPTIONS):
                break
            stream = llm.generate(PROMPT, stop=stop, stream=True, **OPTIONS)
            next(stream)
            left += [weakref.ref(stream), weakref.ref(stream.generation)]
            del stream
        assert [reference() for reference in left] == [None] * len(left)
    finally:
        gc.enable()


def test_only_one_text_is_streamed(llm):
    for prompt, options in ((["the"], {}), (["the", "a"], {}), ([], {}), ("the", {"n": 2})):
        for call in (llm.generate, llm.agenerate):
            with pytest.raises(OptionError, match="stream=True writes one text"):
                call(prompt, stream=True, **options)


# ---- asyncio ---------------------------------------------------------------------------------------------------------


def test_agenerate_is_generate(llm):
    async def write():
        one = await llm.agenerate(PROMPT, logprobs=1, **OPTIONS)
        several = await llm.agenerate([PROMPT, "a"], n=2, **OPTIONS)
        none = await llm.agenerate([], **OPTIONS)
        at_once = await asyncio.gather(*(llm.agenerate(PROMPT, **OPTIONS | {"seed": i}) for i in range(8)))
        return one, several, none, at_once

    one, several, none, at_once = asyncio.run(write())
    assert (one, none) == (llm.generate(PROMPT, **OPTIONS), [])
    assert facts(one) == facts(llm.generate(PROMPT, logprobs=1, **OPTIONS))
    assert several == llm.generate([PROMPT, "a"], n=2, **OPTIONS)
    assert at_once == [llm.generate(PROMPT, **OPTIONS | {"seed": i}) for i in range(8)]


def test_async_streams(llm):
    """Several streams at once, in an event loop that goes on meanwhile."""
    seeds = range(6)

    async def read(seed):
        stream = llm.agenerate(PROMPT, stream=True, **OPTIONS | {"seed": seed})
        assert isinstance(stream, AsyncTextStream)
        pieces = [piece async for piece in stream]
        assert all(pieces)
        assert "".join(pieces) == stream.text
        return stream.text

    async def main():
        return await asyncio.gather(*map(read, seeds))

    expected = [llm.generate(PROMPT, **OPTIONS | {"seed": seed}) for seed in seeds]
    found = asyncio.run(main())
    assert found == expected
    assert [facts(text) for text in found] == [facts(text) for text in expected]


def test_errors_in_asyncio(llm):
    def broken(ids, logits):
        raise ZeroDivisionError("mine")

    async def main():
        with pytest.raises(ZeroDivisionError, match="mine"):
            await llm.agenerate(PROMPT, logits_processor=broken)
        with pytest.raises(OptionError, match="temperature"):
            await llm.agenerate(PROMPT, temperature=-1)
        with pytest.raises(TypeError, match="temprature"):
            await llm.agenerate(PROMPT, temprature=1)
        stream = llm.agenerate(PROMPT, logits_processor=broken, stream=True)
        with pytest.raises(ZeroDivisionError, match="mine"):
            await anext(stream)
        assert stream.finish_reason == "error"
        assert [piece async for piece in stream] == []
        with pytest.raises(ZeroDivisionError) as error:
            await llm.agenerate([PROMPT, [5]], logits_processor=lambda ids, logits: 1 / (len(ids) - 1) and None)
        assert [text is None for text in error.value.texts] == [False, True]

    asyncio.run(main())
    with pytest.raises(TokenizerError):
        random_llm("qwen", "f32").agenerate([1], stream=True)


class Gate:
    """A logits_processor that lets two tokens pass and then stops the text until the gate is opened.

    calls: how often it was asked.
    """

    def __init__(self):
        self.calls, self._open, self._reached = 0, threading.Event(), threading.Event()

    def __call__(self, ids, logits):
        self.calls += 1
        if self.calls > 2:
            self._reached.set()
            assert self._open.wait(60)

    async def reached(self):
        await asyncio.to_thread(self._reached.wait, 60)

    def open(self):
        self._open.set()


def test_async_streams_are_closed_in_every_way(llm):
    async def begun():
        gate = Gate()
        stream = llm.agenerate(PROMPT, stream=True, logits_processor=gate, **OPTIONS)
        await anext(stream)
        return gate, stream, stream.generation

    async def main():
        gate, stream, generation = await begun()
        await stream.aclose()
        gate.open()
        assert (await anext(stream, None), stream.finish_reason) == (None, "cancelled")
        assert generation.finish_reason == "cancelled"
        gate, stream, generation = await begun()
        async with stream:
            pass
        gate.open()
        assert (stream.finish_reason, generation.finish_reason) == ("cancelled", "cancelled")
        gate, stream, generation = await begun()
        async with contextlib.aclosing(stream):
            pass
        gate.open()
        assert generation.finish_reason == "cancelled"
        gate, stream, generation = await begun()
        del stream
        gate.open()
        assert generation.finish_reason == "cancelled"

    llm.agenerate(PROMPT, stream=True, **OPTIONS)  # without an event loop, and never read
    asyncio.run(main())
    assert llm.generate(PROMPT, **OPTIONS)


def test_a_task_that_is_cancelled_ends_its_texts(llm):
    async def read(gate):
        async for _ in llm.agenerate(PROMPT, stream=True, logits_processor=gate, **OPTIONS):
            pass

    async def main():
        for write in (
            lambda gate: llm.agenerate(PROMPT, logits_processor=gate, **OPTIONS),
            lambda gate: llm.agenerate([PROMPT] * 3, logits_processor=gate, **OPTIONS),
            read,
        ):
            gate = Gate()
            task = asyncio.create_task(write(gate))
            await gate.reached()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            gate.open()
            assert await llm.agenerate(PROMPT, **OPTIONS) == expected
            assert gate.calls <= 5

    expected = llm.generate(PROMPT, **OPTIONS)
    asyncio.run(main())
