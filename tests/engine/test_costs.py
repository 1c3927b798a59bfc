"""How much of a prompt fits between the tokens of other texts, and how prompts share it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastllm.decoding import Sampling
from fastllm.engine.costs import Costs


def learned(row, token, rows=4):
    """Costs of a machine on which `rows` rows take `row` seconds, and a token of a prompt beside them `token`."""
    costs = Costs()
    costs.note(1, row)
    costs.note(rows, row)
    for _ in range(20):
        costs.note_prompt(rows, 16, row + 16 * token)
    return costs


@given(st.floats(1e-4, 3.0), st.floats(1e-6, 0.2))
def test_writers_wait_no_longer_than_they_may(row, token):
    """At most 100 ms, or 1.5 times their own time; but a prompt always goes on, by 16 tokens at least."""
    room = learned(row, token).room(4)
    assert room % 16 == 0
    wait = row + room * token
    assert wait <= max(0.1, 1.5 * row) or room == 16
    if 16 * token > 0.05 * row:  # a smaller difference of two times says little: it then counts as larger
        assert wait + 16 * token > 0.8 * max(0.1, 1.5 * row)  # most of that time is used


def test_the_first_piece_is_small():
    """Before anything was measured, and after prompts were read alone, in large pieces whose tokens cost less."""
    costs = Costs()
    assert costs.room(3) == 16
    costs.note(4, 0.01)
    costs.note_prompt(0, 256, 0.05)
    assert costs.room(4) == 16


def test_a_dearer_token_counts_at_once():
    costs = learned(0.01, 0.001)
    before = costs.room(4)
    costs.note_prompt(4, 32, 0.01 + 32 * 0.004)
    assert costs.room(4) <= before // 3


@pytest.mark.parametrize("rows", [3, 5, 6, 7, 9, 12, 15, 100])
def test_rows_between_powers_of_two(rows):
    costs = Costs()
    for i in range(7):
        costs.note(1 << i, 1.0 + i)
    low = 1 << (rows.bit_length() - 1)
    assert costs.seconds_of(low) < costs.seconds_of(rows) < costs.seconds_of(2 * low) or rows > 64


def test_a_short_prompt_is_not_kept_waiting_by_a_long_one(llm):
    """Prompts share a piece: a short one that comes later has its first token long before the long one."""
    scheduler = llm._scheduler
    long = llm.start([3] * 150, Sampling(), max_tokens=1, seed=0, stop=())
    writer = llm.start([5, 6], Sampling(), max_tokens=150, seed=0, stop=())
    next(writer)
    writer.ahead = 1000
    llm._engine.costs.room = lambda rows: 16
    scheduler._join(long, 1)
    scheduler._steps.step()
    short = llm.start([7] * 20, Sampling(), max_tokens=1, seed=0, stop=())
    scheduler._join(short, 1)
    steps = 0
    while not short.tokens:
        scheduler._steps.step()
        steps += 1
    assert steps == 3  # 8 tokens of each in a step
    assert not long.tokens
    assert long.sequence.length == 16 + 8 + 8 + 12
