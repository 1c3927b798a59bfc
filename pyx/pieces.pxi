# SentencePiece's and llama2.c's vocabularies: what is done for each of tens of thousands of words, which a start waits
# for. fastllm/tokenizer/pieces.py does the rest.
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE

from fastllm.errors import TokenizerError


def llama2c_words(const unsigned char[::1] blob not None):
    """The words of a llama2.c tokenizer.bin and their scores: after an int32, for each an f32 score, an int32 length,
    the bytes. Raises TokenizerError."""
    cdef const unsigned char *at = &blob[0] + min(4, blob.shape[0])
    cdef const unsigned char *end = &blob[0] + blob.shape[0]
    cdef float score
    cdef int32_t length
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


cdef int hex_digit(unsigned char c) noexcept:
    if c'0' <= c <= c'9':
        return c - c'0'
    c |= 0x20
    return c - c'a' + 10 if c'a' <= c <= c'f' else -1


def byte_names(list words not None):
    """Which words are names of bytes, <0x00> to <0xFF>: index -> byte."""
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


# ---- protobuf -------------------------------------------------------------------------------------------------------

cdef struct proto_field:
    uint64_t number
    uint64_t value              # of a varint
    const unsigned char *data   # of anything else: `size` bytes; NULL: it is a varint
    size_t size


cdef int read_varint(const unsigned char **at, const unsigned char *end, uint64_t *value) except -1:
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
    cdef uint64_t key = 0, size = 0
    read_varint(at, end, &key)
    field.number = key >> 3
    field.data = NULL
    if key & 7 == 0:
        return read_varint(at, end, &field.value)
    if key & 7 == 2:
        read_varint(at, end, &size)
    else:
        size = 8 if key & 7 == 1 else 4 if key & 7 == 5 else UINT64_MAX  # groups, which nobody writes
    if size > <uint64_t>(end - at[0]):
        raise TokenizerError("it is truncated, or no SentencePiece model")
    field.data = at[0]
    field.size = <size_t>size
    at[0] += size
    return 0


cdef object field_value(const proto_field *field):
    if field.data is NULL:
        return field.value
    return PyBytes_FromStringAndSize(<const char *>field.data, <Py_ssize_t>field.size)


def proto_fields(const unsigned char[::1] message not None):
    """The fields of a protobuf message, (number, value): varints as int, all else as bytes. Raises TokenizerError."""
    cdef const unsigned char *at = &message[0]
    cdef const unsigned char *end = at + message.shape[0]
    cdef proto_field field
    cdef list out = []
    while at < end:
        read_field(&at, end, &field)
        out.append((field.number, field_value(&field)))
    return out


def proto_pieces(const unsigned char[::1] model not None):
    """Of a sentencepiece ModelProto, the texts of the pieces (field 1 of its field 1), their types (3, where there is
    none 1), and its other fields as proto_fields has them: three lists. Raises TokenizerError."""
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
    while value >= 0x80:
        at[0] = <unsigned char>(value & 0x7F | 0x80)
        value >>= 7
        at += 1
    at[0] = <unsigned char>value
    return at + 1


def write_proto_pieces(list words not None, scores, list types not None):
    """What proto_pieces reads, with scores as field 2. Each piece once, and none that is not text: such words cannot be
    met in encoding and become control pieces, 3, unless they are the unknown one, 2."""
    cdef size_t most = 0, length
    cdef unsigned char head[16]
    cdef unsigned char *at
    cdef unsigned char *body
    cdef float score
    cdef bytes word
    cdef set seen = set()
    words = list(words)  # code that converts a score or a type might change it after the bytes are counted
    for word in words:
        most += <size_t>len(word) + 64  # more than tags, lengths or the name of an unused word take
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
