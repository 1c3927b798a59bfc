"""Files with bytes changed at random."""

from fastllm.tensors import floats
from helpers.calls import failure


def read_changed(path, blob, changes, tensors):
    """Writes blob, with `changes` [(place, value), ...], to path. tensors(path) can be read, or are refused by name."""
    changed = bytearray(blob)
    for place, value in changes:
        changed[place % len(blob)] = value
    path.write_bytes(bytes(changed))

    def use():
        for found in tensors(path).values():
            assert floats(found).size <= 1 << 16

    error = failure(use)
    assert error is None or str(path) in str(error)
