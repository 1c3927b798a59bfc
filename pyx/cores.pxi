# Teams of threads take turns on the machine's cores.
#
# The workers of a team meet at barriers, some hundred times in a forward. When several Python threads start teams that
# have more workers than there are cores in all, some worker is always off its core, and its team waits at the barrier
# for a time slice, milliseconds instead of microseconds. So a team first takes as many cores as it has workers, and
# waits until so many are free. Teams start in the order in which they asked. On a machine with 4 cores:
#
#     team A asks for 3      starts                  busy_cores = 3, waiting = []
#     team B asks for 2      waits                   busy_cores = 3, waiting = [B 2]
#     team C asks for 2      waits behind B          busy_cores = 3, waiting = [B 2, C 2]
#     team A ends            B and C start           busy_cores = 4, waiting = []
#
# A plain lock would not keep that order: a thread that releases a Python lock and acquires it again at once gets it
# before those that wait. A call on one thread has no barrier, so it takes no core and never waits.
from _thread import allocate_lock
from collections import deque

cdef size_t cores = 0  # of the machine; 0: not asked for yet
cdef size_t busy_cores = 0  # cores that running teams have taken
cdef object waiting = deque()  # (lock, cores wanted) of each team that waits; the lock is released when its turn comes


cdef size_t take_cores(size_t threads) except? 0:
    """Waits for the cores of a team of `threads`; returns how many it took, for give_cores.

    The GIL is released during the wait. Ctrl-C ends the wait with KeyboardInterrupt, and nothing is taken then.
    """
    global cores, busy_cores
    # A signal handler's own forward would wait for the one that it interrupts: it gets one thread.
    if threads <= 1 or answering:
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
            start_waiting()
        except ValueError:  # start_waiting had just given this team its cores
            give_cores(wanted)
        raise
    return wanted


cdef int give_cores(size_t taken) except -1:
    """Gives back what take_cores returned."""
    global busy_cores
    if taken:
        busy_cores -= taken
        start_waiting()
    return 0


cdef int start_waiting() except -1:
    """Starts teams that wait, the first first, until there are too few cores for the next one."""
    global busy_cores
    while waiting and busy_cores + <size_t>waiting[0][1] <= cores:
        turn, wanted = waiting.popleft()
        busy_cores += wanted
        turn.release()
    return 0


def _forget_teams():
    """Runs in the child of a fork, where the parent's other threads do not exist: no team runs, none waits."""
    global busy_cores
    busy_cores = 0
    waiting.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_teams)
