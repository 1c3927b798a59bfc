"""Packing ahead of who writes the file: each thread packs a piece of its own, so that none waits for another.

    read, in order                 packed, at once             written, in order
    piece 7 --> the next buffer -> threads: 4, 5, 6            piece 3

A team of threads that shares each piece would wait at its end for the last of them: on a busy machine, where one is off
its core, that takes several times as long. Matrices whose rows are reordered are one piece, and may be large: each is
packed when all before it are written, and nothing beside it: there a team is better.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping

from fastllm import _core
from fastllm.tensors import Bytes
from fastllm.weights.packing import Plan, Rows, chunks

Pack = Callable[[str, Plan, Rows, Bytes, memoryview], None]  # name, matrix, rows, what they are in the file, panels


def packed(plans: Mapping[str, Plan], pack: Pack, threads: int) -> Iterator[memoryview]:
    """The panels of all pieces of all matrices, in order; each is there until the next one is asked for.

    pack: called for each piece, several at once. Raises what it raises.
    """
    from concurrent.futures import Future, ThreadPoolExecutor

    free = deque(_Room() for _ in range(threads + 1))
    alone = _Room()
    under_way: deque[tuple[Future[None], _Room, memoryview]] = deque()

    def next_one() -> Iterator[memoryview]:
        """The first piece that is under way; then its memory is free."""
        done, room, panels = under_way.popleft()
        done.result()
        yield panels
        free.append(room)

    with ThreadPoolExecutor(threads) as pool:
        for name, matrix in plans.items():
            for rows in chunks(matrix):
                data = matrix.source.read(rows.begin, rows.end)  # here: what reads may not be safe on several threads
                if matrix.weight.rows is not None:
                    while under_way:
                        yield from next_one()
                    panels = alone.of(rows.nbytes)
                    pack(name, matrix, rows, data, panels)
                    yield panels
                    continue
                if not free:
                    yield from next_one()
                room = free.popleft()
                panels = room.of(rows.nbytes)
                under_way.append((pool.submit(pack, name, matrix, rows, data, panels), room, panels))
        while under_way:
            yield from next_one()


class _Room:
    """Aligned memory that is used again, and grows."""

    def __init__(self) -> None:
        self._memory = memoryview(b"")

    def of(self, nbytes: int) -> memoryview:
        """The first nbytes of it."""
        if len(self._memory) < nbytes:
            self._memory = memoryview(_core.Buffer(nbytes))
        return self._memory[:nbytes]
