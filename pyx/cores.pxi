# Teams that Python threads start at once share the machine's cores: a team takes as many as it has threads, and waits
# until they are free, first come, first served. (More threads than cores would stop each other at their barriers, for a
# time slice each time. Python's own locks are not fair: a thread that gives one back and takes it again starves the
# others.) A call of one thread waits for no barrier and takes no turn: the system shares the cores between such.
# All of this happens under the GIL; nothing holds it while it waits.
cdef size_t cores = 0          # of the machine; 0: not yet asked for
cdef size_t busy_cores = 0     # of them, those that teams have
cdef object waiting = deque()  # (a lock that is taken until it is this team's turn, how many cores it takes)


cdef size_t take_cores(size_t threads) except? 0:
    """Waits for the cores of a team; returns what is to be given back. Ctrl-C ends the wait with KeyboardInterrupt."""
    global cores, busy_cores
    if threads <= 1:
        return 0
    if cores == 0:
        from fastllm.cores import core_count
        cores = core_count()[0]
    cdef size_t wanted = min(threads, cores)
    if busy_cores + wanted <= cores and not waiting:
        busy_cores += wanted
        return wanted
    turn = allocate_lock()
    turn.acquire()
    waiting.append((turn, wanted))
    try:
        turn.acquire()
    except BaseException:
        try:
            waiting.remove((turn, wanted))
            call_next()
        except ValueError:  # its turn came just now
            give_cores(wanted)
        raise
    return wanted


cdef int give_cores(size_t taken) except -1:
    global busy_cores
    if taken:
        busy_cores -= taken
        call_next()
    return 0


cdef int call_next() except -1:
    """Lets those that wait begin, in order, for as long as there are cores for the next one."""
    global busy_cores
    while waiting and busy_cores + <size_t>waiting[0][1] <= cores:
        turn, wanted = waiting.popleft()
        busy_cores += wanted
        turn.release()
    return 0


def _forget_turns():
    """In a forked child: the threads that had cores in the parent, or waited for them, are not there."""
    global busy_cores
    busy_cores = 0
    waiting.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_turns)
