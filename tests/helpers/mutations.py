"""Files with bytes changed at random."""

from fastllm.tensors import floats
from helpers.calls import failure


def changed(blob, changes):
    """The bytes of blob with `changes` [(place, value), ...]; a place past the end counts from the start again."""
    out = bytearray(blob)
    for place, value in changes:
        out[place % len(blob)] = value
    return bytes(out)


def read_changed(path, blob, changes, tensors):
    """Writes blob, with `changes` [(place, value), ...], to path. tensors(path) can be read, or are refused by name."""
    path.write_bytes(changed(blob, changes))

    def use():
        for found in tensors(path).values():
            assert floats(found).size <= 1 << 16

    error = failure(use)
    assert error is None or str(path) in str(error)
