"""Packing ahead of who writes the file: each thread packs a piece of its own, so that none waits for another.

    read, in order                 packed, at once             written, in order
    piece 7 --> the next buffer -> threads: 4, 5, 6            piece 3

A team of threads that shares each piece would wait at its end for the last of them: on a busy machine, where one is off
its core, that takes several times as long.
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

    pieces = ((name, matrix, rows) for name, matrix in plans.items() for rows in chunks(matrix))
    most = max((rows.nbytes for matrix in plans.values() for rows in chunks(matrix)), default=0)
    free = deque(memoryview(_core.Buffer(most)) for _ in range(threads + 1)) if most else deque[memoryview]()
    under_way: deque[tuple[Future[None], memoryview, int]] = deque()

    def first() -> tuple[memoryview, int]:
        done, buffer, nbytes = under_way.popleft()
        done.result()
        return buffer, nbytes

    with ThreadPoolExecutor(threads) as pool:
        for name, matrix, rows in pieces:
            data = matrix.source.read(rows.begin, rows.end)  # here: what reads may not be safe on several threads
            if not free:
                buffer, nbytes = first()
                yield buffer[:nbytes]
                free.append(buffer)
            buffer = free.popleft()
            under_way.append((pool.submit(pack, name, matrix, rows, data, buffer[: rows.nbytes]), buffer, rows.nbytes))
        while under_way:
            buffer, nbytes = first()
            yield buffer[:nbytes]
