# Byte-pair encoding with tables that lie in a file as they are searched, so that nothing is made of a vocabulary of
# hundreds of thousands of tokens before the first text is encoded. Everything else about these tokenizers is in
# fastllm/tokenizer/_library.py.
#
# Both tables are hash tables with open addressing (the next slot is tried where one is taken). Their sizes are powers
# of two, of which at most 4/5 are used:
#
#     words     u32 [slots]       an id, or NO_ID; by the hash of the token's bytes
#     merges    u32 [slots, 4]    left and right id, rank, id of both together; NO_ID first where there is none
from cpython.unicode cimport PyUnicode_AsUTF8AndSize

cdef enum:
    NO_ID = 0xFFFFFFFF


cdef struct merge:
    uint32_t left
    uint32_t right
    uint32_t rank
    uint32_t both


cdef struct candidate:  # two neighbours that can be merged: the symbol at `at` and the one after it
    merge found
    uint32_t at


cdef size_t hash_bytes(const unsigned char *at, size_t size) noexcept nogil:
    """FNV-1a, http://www.isthe.com/chongo/tech/comp/fnv/index.html."""
    cdef uint64_t found = 0xCBF29CE484222325ULL
    for i in range(size):
        found = (found ^ at[i]) * 0x100000001B3ULL
    return <size_t>(found ^ found >> 32)


cdef size_t hash_pair(uint32_t left, uint32_t right) noexcept nogil:
    """Multiplicative hashing (Knuth, The Art of Computer Programming 3, 6.4); the high bits are the good ones."""
    return <size_t>(((<uint64_t>left << 32 | right) * 0x9E3779B97F4A7C15ULL) >> 24)


cdef size_t slots_for(size_t count) noexcept:
    cdef size_t slots = 1
    while slots * 4 < count * 5 + 4:
        slots *= 2
    return slots


cdef const unsigned char *utf8(str text, size_t *size) except NULL:
    cdef Py_ssize_t length = 0
    cdef const char *found = PyUnicode_AsUTF8AndSize(text, &length)
    size[0] = <size_t>length
    return <const unsigned char *>found


def merge_tables(dict vocabulary not None, list merges not None):
    """The tables of a vocabulary (token -> id) and its merges, pairs (left, right) of tokens in the order of their
    ranks: the bytes of all tokens one after the other, u32 where each id's end, `words`, `merges`.

    Ids that no token has are empty. Raises KeyError for a merge of tokens that are not in the vocabulary.
    """
    cdef size_t size, slots, slot
    cdef Py_ssize_t count = max(vocabulary.values(), default=-1) + 1
    cdef uint32_t i, rank
    cdef const unsigned char *text
    cdef merge *pair
    cdef list tokens = [b""] * count
    cdef str token
    for token, i in vocabulary.items():
        tokens[i] = token.encode()
    ends = bytearray(4 * count)
    cdef unsigned char[::1] ends_view = ends if count else bytearray(1)
    cdef uint32_t end = 0
    for i in range(<uint32_t>count):
        end += <uint32_t>len(tokens[i])
        memcpy(&ends_view[4 * i], &end, 4)
    slots = slots_for(<size_t>len(vocabulary))
    words = bytearray(b"\xff") * (4 * slots)
    cdef unsigned char[::1] words_view = words
    cdef uint32_t *ids = <uint32_t *>&words_view[0]
    for token, i in vocabulary.items():
        text = utf8(token, &size)
        slot = hash_bytes(text, size) & (slots - 1)
        while ids[slot] != NO_ID:
            slot = (slot + 1) & (slots - 1)
        ids[slot] = i
    slots = slots_for(<size_t>len(merges))
    table = bytearray(b"\xff") * (sizeof(merge) * slots)
    cdef unsigned char[::1] table_view = table
    cdef merge *pairs = <merge *>&table_view[0]
    cdef uint32_t left, right
    rank = 0
    for first, second in merges:
        left, right = vocabulary[first], vocabulary[second]
        slot = hash_pair(left, right) & (slots - 1)
        while pairs[slot].left != NO_ID and (pairs[slot].left != left or pairs[slot].right != right):
            slot = (slot + 1) & (slots - 1)
        pair = &pairs[slot]
        pair.left, pair.right, pair.rank, pair.both = left, right, rank, vocabulary[first + second]
        rank += 1
    return b"".join(tokens), bytes(ends), bytes(words), bytes(table)


@cython.final
cdef class Merges:
    """Byte-pair encoding by the tables that merge_tables makes. Several threads may use it at once.

    tokens, ends, words, merges: as merge_tables returns them, aligned to 4 bytes. whole: whether a word that is a token
    becomes it, whatever the merges make of it. Raises ValueError for tables that do not fit each other.
    """
    cdef const unsigned char[::1] tokens
    cdef const uint32_t[::1] ends
    cdef const uint32_t[::1] words
    cdef const uint32_t[:, ::1] merges
    cdef readonly bint whole

    def __cinit__(self, tokens, ends, words, merges, *, bint whole):
        cdef uint32_t last = 0
        self.tokens = memoryview(tokens).cast("B")
        self.ends = memoryview(ends).cast("B").cast("I")
        self.words = memoryview(words).cast("B").cast("I")
        flat = memoryview(merges).cast("B")
        self.merges = flat.cast("I", (len(flat) // 16, 4))
        self.whole = whole
        for i in range(self.ends.shape[0]):
            if self.ends[i] < last:
                raise ValueError("its tokens overlap")
            last = self.ends[i]
        slots = (<size_t>self.words.shape[0], <size_t>self.merges.shape[0])
        if last != <size_t>self.tokens.shape[0] or slots[0] & (slots[0] - 1) or slots[1] & (slots[1] - 1):
            raise ValueError("its tables have other sizes")

    @property
    def size(self):
        """How many ids there are."""
        return self.ends.shape[0]

    def token(self, Py_ssize_t i):
        """The bytes of a token; empty for an id that has none. Raises IndexError."""
        cdef size_t size
        if not 0 <= i < self.ends.shape[0]:
            raise IndexError(i)
        cdef const unsigned char *text = self.bytes_of(<uint32_t>i, &size)
        return PyBytes_FromStringAndSize(<const char *>text, <Py_ssize_t>size)

    def find(self, str token not None):
        """The id of a token, or None."""
        cdef size_t size
        cdef const unsigned char *text = utf8(token, &size)
        cdef uint32_t found = self.id_of(text, size)
        return None if found == NO_ID else found

    def encode(self, list symbols not None, list words not None):
        """The ids of words, from those of their characters. words: which word each of the symbols is in, ascending.

        Raises MemoryError, ValueError where there are more symbols than words.
        """
        cdef Py_ssize_t begin, end = 0, count = len(symbols)
        cdef list out = []
        if len(words) != count:
            raise ValueError("a symbol is in no word")
        cdef size_t longest = <size_t>count + 1
        cdef uint32_t *ids = <uint32_t *>malloc(longest * 4)
        if ids is NULL:
            raise MemoryError
        try:
            while end < count:
                begin = end
                word = words[begin]
                while end < count and words[end] == word:
                    ids[end - begin] = symbols[end]
                    end += 1
                size = self.merge_word(ids, <size_t>(end - begin))
                for i in range(size):
                    out.append(ids[i])
        finally:
            free(ids)
        return out

    cdef const unsigned char *bytes_of(self, uint32_t i, size_t *size) noexcept nogil:
        cdef size_t begin = self.ends[i - 1] if i else 0
        size[0] = self.ends[i] - begin
        return &self.tokens[0] + begin

    cdef uint32_t id_of(self, const unsigned char *text, size_t size) noexcept nogil:
        """The id of a token; NO_ID where there is none."""
        cdef size_t mask = <size_t>self.words.shape[0] - 1, slot = hash_bytes(text, size) & mask, length
        cdef const unsigned char *other
        cdef uint32_t found
        for _ in range(mask + 1):
            found = self.words[slot]
            if found >= <size_t>self.ends.shape[0]:
                return NO_ID
            other = self.bytes_of(found, &length)
            if length == size and memcmp(other, text, size) == 0:
                return found
            slot = (slot + 1) & mask
        return NO_ID

    cdef bint pair_of(self, uint32_t left, uint32_t right, merge *found) noexcept nogil:
        """The merge of two ids; False where there is none."""
        cdef size_t mask = <size_t>self.merges.shape[0] - 1, slot = hash_pair(left, right) & mask
        for _ in range(mask + 1):
            memcpy(found, &self.merges[slot, 0], sizeof(merge))
            if found.left == NO_ID:
                return False
            if found.left == left and found.right == right:
                return True
            slot = (slot + 1) & mask
        return False

    cdef Py_ssize_t merge_word(self, uint32_t *ids, size_t n) except -1:
        """Merges the neighbours of the lowest rank, of equal ones the first, until no merge is left. Returns how many
        ids are left."""
        cdef size_t at = 0, size, count = 0
        cdef uint32_t left, right
        cdef candidate best
        if n > 1 and self.whole and self.take_whole(ids, n):
            return 1
        if n < 2:
            return <Py_ssize_t>n
        # A list of the symbols that are left: `after` and `before` each, n where there is none. A symbol that was
        # merged into the one before it is NO_ID. Each merge makes two new candidates at most.
        cdef char *room = <char *>malloc(n * 2 * sizeof(uint32_t) + 3 * n * sizeof(candidate))
        if room is NULL:
            raise MemoryError
        cdef candidate *heap = <candidate *>room
        cdef uint32_t *after = <uint32_t *>(room + 3 * n * sizeof(candidate))
        cdef uint32_t *before = after + n
        with nogil:
            for at in range(n):
                after[at] = <uint32_t>(at + 1)
                before[at] = <uint32_t>(at - 1 if at else n)
            for at in range(n - 1):
                self.push(heap, &count, ids[at], ids[at + 1], <uint32_t>at)
            while count:
                best = pop(heap, &count)
                left = best.at
                if ids[left] != best.found.left or after[left] == n or ids[after[left]] != best.found.right:
                    continue  # one of the two is another by now
                right = after[left]
                ids[left], ids[right] = best.found.both, NO_ID
                after[left] = after[right]
                if after[left] != n:
                    before[after[left]] = left
                    self.push(heap, &count, ids[left], ids[after[left]], left)
                if before[left] != n:
                    self.push(heap, &count, ids[before[left]], ids[left], before[left])
            size, at = 0, 0
            while at != n:
                ids[size] = ids[at]
                size += 1
                at = after[at]
        free(room)
        return <Py_ssize_t>size

    cdef bint take_whole(self, uint32_t *ids, size_t n) except -1:
        """Whether a word is a token, which is then ids[0]."""
        cdef size_t size
        cdef uint32_t found
        cdef list parts = []
        for i in range(n):
            if ids[i] >= <size_t>self.ends.shape[0]:
                return False
            text = self.bytes_of(ids[i], &size)
            parts.append(PyBytes_FromStringAndSize(<const char *>text, <Py_ssize_t>size))
        cdef bytes word = b"".join(parts)
        found = self.id_of(<const unsigned char *>PyBytes_AS_STRING(word), <size_t>len(word))
        if found == NO_ID:
            return False
        ids[0] = found
        return True

    cdef void push(self, candidate *heap, size_t *count, uint32_t left, uint32_t right, uint32_t at) noexcept nogil:
        """Puts two neighbours, if they can be merged, into a binary heap by rank and place."""
        cdef candidate made
        cdef size_t i = count[0], parent
        if not self.pair_of(left, right, &made.found):
            return
        made.at = at
        count[0] += 1
        while i:
            parent = (i - 1) / 2
            if not is_before(&made, &heap[parent]):
                break
            heap[i] = heap[parent]
            i = parent
        heap[i] = made


cdef bint is_before(const candidate *a, const candidate *b) noexcept nogil:
    return a.found.rank < b.found.rank or (a.found.rank == b.found.rank and a.at < b.at)


cdef candidate pop(candidate *heap, size_t *count) noexcept nogil:
    """Takes the first candidate out of a heap that has one."""
    cdef candidate first = heap[0], last
    cdef size_t i = 0, child = 1
    count[0] -= 1
    last = heap[count[0]]
    while child < count[0]:
        if child + 1 < count[0] and is_before(&heap[child + 1], &heap[child]):
            child += 1
        if not is_before(&heap[child], &last):
            break
        heap[i] = heap[child]
        i, child = child, 2 * child + 1
    heap[i] = last
    return first
