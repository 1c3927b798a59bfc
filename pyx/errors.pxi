# A status of C as an exception.


cdef int check(fl_status status, str what) except -1:
    """Raises what a status stands for. `what` begins the message: the operation or the tensor that failed."""
    if status == FL_OK:
        return 0
    if status == FL_NO_MEMORY:
        raise MemoryError(f"{what}: out of memory")
    if status == FL_NO_PAGES:
        raise CacheFullError(f"{what}: the keys and values of all texts would exceed the limit of the KV cache")
    if status == FL_BAD_TOKEN:
        raise OptionError(f"{what}: a token id is outside the vocabulary")
    if status == FL_BAD_POSITION:
        raise ContextError(f"{what}: more tokens than the context holds, or none")
    if status == FL_BAD_VALUE:
        raise CheckpointError(f"{what}: a value is not finite, or too large for the type")
    if status == FL_BAD_CONFIG:
        raise CheckpointError(f"{what}: these dimensions cannot be a model's")
    raise CheckpointError(f"{what}: a tensor is missing or has the wrong shape")
