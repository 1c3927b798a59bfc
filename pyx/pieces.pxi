# Vocabularies of SentencePiece, llama2.c and GGUF: the loops over their hundreds of thousands of pieces, which the
# first token waits for. All else about them is in fastllm/tokenizer/ (_pieces.py, gguf.py) and formats/gguf.py.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.unicode cimport PyUnicode_DecodeUTF8

from fastllm.errors import TokenizerError


def llama2c_words(const unsigned char[::1] blob not None):
    """The pieces of a llama2.c tokenizer.bin: a list of their bytes and a list of their scores.

    The file is an int32, the length of the longest piece, then for each piece an f32 score, an int32 length, and its
    bytes. Raises TokenizerError if it ends within a piece.
    """
    cdef const unsigned char *at = &blob[0] + min(4, blob.shape[0])
    cdef const unsigned char *end = &blob[0] + blob.shape[0]
    cdef float score = 0
    cdef int32_t length = 0
    cdef list words = [], scores = []
    while at < end:
        if end - at < 8:
            raise TokenizerError(f"it is truncated after {len(words):,} words")
        memcpy(&score, at, 4)
        memcpy(&length, at + 4, 4)
        at += 8
        if length < 0 or length > end - at:
            raise TokenizerError(f"word {len(words):,} would be {length:,} bytes long: truncated, or no tokenizer.bin")
        words.append(PyBytes_FromStringAndSize(<const char *>at, length))
        scores.append(<double>score)
        at += length
    return words, scores


def gguf_strings(const unsigned char[::1] data not None, size_t at, size_t count):
    """Strings of a GGUF file from byte `at` of it on, a list, and where they end. Fewer than `count`, where the file
    ends before them.

    Each is a length, u64, and UTF-8; bytes that are not become surrogate escapes (PEP 383).
    """
    cdef size_t end = <size_t>data.shape[0]
    cdef uint64_t length = 0
    cdef list found = []
    for _ in range(count):
        if at > end or end - at < 8:
            break
        memcpy(&length, &data[0] + at, 8)
        if length > end - at - 8:
            break
        found.append(PyUnicode_DecodeUTF8(<const char *>&data[0] + at + 8, <Py_ssize_t>length, "surrogateescape"))
        at += 8 + length
    return found, at


def merge_halves(list merges not None):
    """Merges such as "t h", cut at their spaces: a list of pairs. The first half may begin with a space.

    Raises TokenizerError for one without two halves, TypeError for what is no str.
    """
    cdef str merge
    cdef Py_ssize_t at
    cdef list found = []
    for merge in merges:
        if merge is None:
            raise TypeError("a merge is None")
        at = merge.find(" ", 1)
        if at < 0:
            raise TokenizerError(f"its metadata has the merge {merge[:40]!r} without two halves")
        found.append((merge[:at], merge[at + 1:]))
    return found


cdef int hex_digit(unsigned char c) noexcept:
    """The value of a hexadecimal digit, or -1."""
    if c'0' <= c <= c'9':
        return c - c'0'
    c |= 0x20
    return c - c'a' + 10 if c'a' <= c <= c'f' else -1


def byte_names(list words not None):
    """The pieces that are names of bytes, b"<0x00>" to b"<0xFF>": index -> byte, 0 to 255.

    words: a list of bytes. Raises TypeError if one is not.
    """
    cdef bytes word
    cdef int high, low
    cdef const unsigned char *at
    cdef dict found = {}
    for i, word in enumerate(words):
        if len(word) != 6:
            continue
        at = <const unsigned char *>PyBytes_AS_STRING(word)
        if memcmp(at, b"<0x", 3) != 0 or at[5] != c'>':
            continue
        high, low = hex_digit(at[3]), hex_digit(at[4])
        if high >= 0 and low >= 0:
            found[i] = 16 * high + low
    return found


# A SentencePiece model is a protobuf message: fields, one after the other, each a key and a value. The key is a varint,
# field number << 3 | wire type. A varint has 7 bits in each byte, the lowest first; bit 7 is set in all bytes but the
# last. (Protocol Buffers, "Encoding"; the fields are those of sentencepiece_model.proto.)
#
#     ModelProto        0A len [piece]  0A len [piece]  ...  12 len [trainer_spec]  1A len [normalizer_spec]
#     SentencePiece     0A len text     15 score, f32    18 type, varint

cdef struct proto_field:
    uint64_t number
    uint64_t value  # of a varint, wire type 0
    const unsigned char *data  # of any other wire type: `size` bytes inside the message; NULL for a varint
    size_t size


cdef int read_varint(const unsigned char **at, const unsigned char *end, uint64_t *value) except -1:
    """Reads a varint and advances `at`. Raises TokenizerError if it exceeds 64 bits or reaches past `end`."""
    cdef unsigned shift = 0
    cdef unsigned char byte = 0x80
    value[0] = 0
    while byte >= 0x80:
        if at[0] >= end or shift > 63:
            raise TokenizerError("it is truncated, or no SentencePiece model")
        byte = at[0][0]
        at[0] += 1
        value[0] |= <uint64_t>(byte & 0x7F) << shift
        shift += 7
    return 0


cdef int read_field(const unsigned char **at, const unsigned char *end, proto_field *field) except -1:
    """Reads a field and advances `at`. Raises TokenizerError if it reaches past `end` or has an unknown wire type."""
    cdef uint64_t key = 0, size = 0
    read_varint(at, end, &key)
    field.number = key >> 3
    field.data = NULL
    if key & 7 == 0:
        return read_varint(at, end, &field.value)
    if key & 7 == 2:
        read_varint(at, end, &size)
    else:
        size = 8 if key & 7 == 1 else 4 if key & 7 == 5 else UINT64_MAX  # UINT64_MAX: a group, which is refused
    if size > <uint64_t>(end - at[0]):
        raise TokenizerError("it is truncated, or no SentencePiece model")
    field.data = at[0]
    field.size = <size_t>size
    at[0] += size
    return 0


cdef object field_value(const proto_field *field):
    """An int for a varint, bytes for anything else."""
    if field.data is NULL:
        return field.value
    return PyBytes_FromStringAndSize(<const char *>field.data, <Py_ssize_t>field.size)


def proto_fields(const unsigned char[::1] message not None):
    """The fields of a protobuf message in order, (number, value): varints are int, all other values bytes.

    Raises TokenizerError if it is truncated or no such message.
    """
    cdef const unsigned char *at = &message[0]
    cdef const unsigned char *end = at + message.shape[0]
    cdef proto_field field
    cdef list out = []
    while at < end:
        read_field(&at, end, &field)
        out.append((field.number, field_value(&field)))
    return out


def proto_pieces(const unsigned char[::1] model not None):
    """The texts (bytes) and types (int) of a ModelProto's pieces, and its other fields as proto_fields has them.

    Three lists. A piece without a type has type 1, NORMAL. Raises TokenizerError if it is truncated or no ModelProto.
    """
    cdef const unsigned char *at = &model[0]
    cdef const unsigned char *end = at + model.shape[0]
    cdef const unsigned char *inside
    cdef const unsigned char *last
    cdef proto_field field, part
    cdef list words = [], types = [], others = []
    while at < end:
        read_field(&at, end, &field)
        if field.number != 1 or field.data is NULL:
            others.append((field.number, field_value(&field)))
            continue
        word, kind = b"", 1
        inside, last = field.data, field.data + field.size
        while inside < last:
            read_field(&inside, last, &part)
            if part.number == 1:
                word = field_value(&part)
            elif part.number == 3:
                kind = field_value(&part)
        if not isinstance(word, bytes) or not isinstance(kind, int):
            raise TokenizerError("it is no SentencePiece model: a piece without text")
        words.append(word)
        types.append(kind)
    return words, types, others


cdef unsigned char *write_varint(unsigned char *at, size_t value) noexcept:
    """Writes a varint and returns the place after it."""
    while value >= 0x80:
        at[0] = <unsigned char>(value & 0x7F | 0x80)
        value >>= 7
        at += 1
    at[0] = <unsigned char>value
    return at + 1


def write_proto_pieces(list words not None, scores, list types not None):
    """The pieces of a ModelProto as bytes: words (list of bytes), scores (float), types (int), one of each for a piece.

    SentencePiece wants every piece to be UTF-8, not empty and unique. Any other word can never be the result of an
    encoding; it gets a name of its own, and type 3, CONTROL, unless it is 2, UNKNOWN. Raises ValueError if the lists
    differ in length, TypeError for items of other types.
    """
    cdef size_t most = 0, length
    cdef unsigned char head[16]  # only to measure a varint
    cdef unsigned char *at
    cdef unsigned char *body
    cdef float score
    cdef bytes word
    cdef set seen = set()
    words = list(words)  # a copy: converting a score runs Python code, which might change the list
    for word in words:
        most += <size_t>len(word) + 64  # keys, lengths, score and type, or the name of an unused word, take less
    cdef bytes out = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>most)
    at = <unsigned char *>PyBytes_AS_STRING(out)
    for i, (word, value, kind) in enumerate(zip(words, scores, types, strict=True)):
        if not word or word in seen or not is_text(word):
            word, kind = b"<unused%d>" % i, kind if kind == 2 else 3
        seen.add(word)
        score, length = value, <size_t>PyBytes_GET_SIZE(word)
        body = write_varint(head, length)
        at[0] = 0x0A
        at = write_varint(at + 1, 1 + <size_t>(body - head) + length + 5 + 2)
        at[0] = 0x0A
        at = write_varint(at + 1, length)
        memcpy(at, PyBytes_AS_STRING(word), length)
        at += length
        at[0] = 0x15
        memcpy(at + 1, &score, 4)
        at[5] = 0x18
        at[6] = <unsigned char>kind
        at += 7
    return out[:at - <unsigned char *>PyBytes_AS_STRING(out)]


cdef bint is_text(bytes word):
    try:
        word.decode()
    except UnicodeDecodeError:
        return False
    return True
