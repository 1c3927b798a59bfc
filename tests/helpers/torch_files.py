"""Files as torch.save writes them, but made by hand, pickle opcode by opcode, so that a test can break any part."""

import io
import pickle
import struct
import zipfile

import numpy as np

from fastllm.files import map_file
from fastllm.formats import torch as torch_format
from fastllm.tensors import floats


def tensors(path):
    """The tensors of a file, by name."""
    return torch_format.tensors(path, map_file(path))


def values(tensor):
    """All values of a tensor, in its shape."""
    return floats(tensor).reshape(tensor.shape)


# Each of these gives the opcodes that push one object (https://docs.python.org/3/library/pickletools.html).


def text(word):
    return b"X" + struct.pack("<I", len(word.encode())) + word.encode()


def number(n):
    return b"\x8a\x10" + n.to_bytes(16, "little", signed=True)


def call(name, *args):
    return b"c" + name.replace(" ", "\n").encode() + b"\n(" + b"".join(args) + b"tR"


def numbers(ns):
    return b"(" + b"".join(map(number, ns)) + b"t"


def storage(count, key="0", kind="FloatStorage"):
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def tensor(count=6, offset=0, shape=(2, 3), strides=(3, 1), key="0"):
    hooks = call("collections OrderedDict")
    args = (storage(count, key), number(offset), numbers(shape), numbers(strides), b"\x89", hooks)
    return call("torch._utils _rebuild_tensor_v2", *args)


def state(**items):
    """A whole pickle of a dict."""
    return b"\x80\x02}(" + b"".join(text(k) + v for k, v in items.items()) + b"u."


def archive(pickled, files=None, method=zipfile.ZIP_STORED):
    """The bytes of a file as torch.save writes it since 1.6: a zip with data.pkl and the storages' `files`."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr("archive/data.pkl", pickled)
        for name, data in ({"data/0": bytes(24)} if files is None else files).items():
            file.writestr(f"archive/{name}", data)
    return out.getvalue()


def legacy(pickled, storages=b"", *, little=True, keys=("0",)):
    """The bytes of a file as torch.save wrote it before 1.6: several pickles, then the storages."""
    heads = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": little})
    parts = [pickle.dumps(head, 2) for head in heads]
    return b"".join(parts) + pickled + pickle.dumps(list(keys), 2) + storages


# A file of either kind with the tensor w of shape (2, 3): the numbers 0 to 5.
SIX = np.arange(6, dtype=np.float32)
GOOD = archive(state(w=tensor()), {"data/0": SIX.tobytes(), "byteorder": b"little"})
GOOD_LEGACY = legacy(state(w=tensor()), struct.pack("<q", 6) + SIX.tobytes())
