// A file mapped into memory, which stays safe to read when another process cuts the file short.
//
// A page of memory past the end of its file cannot be read: the system sends SIGBUS to the thread that tries, in a
// kernel, in memcpy, in the middle of a team of threads. A signal has one handler for the whole process, and the
// handler is told an address and nothing else. So it must find the mapping from there: beside fork.c's two flags, the
// globals of this file are the only ones in csrc/ that change. The handler maps zeros where the file's pages are
// missing and marks the mapping; the interrupted read goes on with zeros, and the caller asks fl_mapping_state before
// it uses the result. Every other SIGBUS is passed on to the handler that was there before ours, so debuggers, crash
// reporters and other libraries work as usual.
#if defined(__APPLE__) && !defined(_DARWIN_C_SOURCE)
#define _DARWIN_C_SOURCE // MAP_ANON beside C11
#endif
#include <errno.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/stat.h>

#include "fastllm.h"
#include "threads.h"

#ifdef _WIN32
#include <io.h>
#include <windows.h>
#else
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>
#endif

// A version of a file: its length, and when it was last written to.
typedef struct version {
    int64_t size, seconds, nanoseconds;
} version;

struct fl_mapping {
    atomic_uintptr_t begin; // address of its first byte; 0: not in use
    atomic_uintptr_t end;   // address past its last page of memory
    atomic_int lost;        // 1: zeros are in place of pages that could not be read
    size_t bytes;
    int fd;
    version at_first;          // when it was mapped
    atomic_int_least64_t seen; // when fl_mapping_glance last asked the system, in nanoseconds of fl_now; 0: never
    struct fl_mapping *next;
};

// All mappings that there ever were, the newest first. None is freed, since the handler may be reading it; each is
// reused.
static _Atomic(fl_mapping *) mappings;

static int version_of(int fd, version *out) {
#ifdef _WIN32
    struct _stat64 found;
    if (_fstat64(fd, &found)) return errno;
    *out = (version){found.st_size, found.st_mtime, 0};
#else
    struct stat found;
    if (fstat(fd, &found)) return errno;
#ifdef __APPLE__
    const struct timespec when = found.st_mtimespec;
#else
    const struct timespec when = found.st_mtim;
#endif
    *out = (version){(int64_t)found.st_size, (int64_t)when.tv_sec, (int64_t)when.tv_nsec};
#endif
    return 0;
}

#ifdef _WIN32

// Windows does not let a mapped file be cut short.
void fl_mapping_guard(void) {}

static int map(int fd, size_t bytes, void **out) {
    HANDLE handle = CreateFileMappingW((HANDLE)_get_osfhandle(fd), NULL, PAGE_READONLY, 0, 0, NULL);
    if (!handle) return EACCES;
    *out = MapViewOfFile(handle, FILE_MAP_READ, 0, 0, bytes);
    CloseHandle(handle);
    return *out ? 0 : ENOMEM;
}

static void unmap(void *p, size_t bytes) {
    (void)bytes;
    UnmapViewOfFile(p);
}

static size_t page_bytes(void) { return 4096; }

static int copy_of(int fd) { return _dup(fd); }

static void close_file(int fd) { _close(fd); }

#else

static int map(int fd, size_t bytes, void **out) {
    void *p = mmap(NULL, bytes, PROT_READ, MAP_SHARED, fd, 0);
    if (p == MAP_FAILED) return errno;
    *out = p;
    return 0;
}

static void unmap(void *p, size_t bytes) { munmap(p, bytes); }

static size_t page_bytes(void) {
    const long bytes = sysconf(_SC_PAGESIZE);
    return bytes > 0 ? (size_t)bytes : 4096;
}

static int copy_of(int fd) { return fcntl(fd, F_DUPFD_CLOEXEC, 0); }

static void close_file(int fd) { close(fd); }

// The handlers of SIGBUS that ours replaced: [0] the last time it was installed, [1] the time before.
static struct sigaction actions[2];
static atomic_int passing; // calls of pass_on that have not returned
static size_t page_size;   // of memory; set before our handler is installed

// Whether the signal was sent by kill or raise, and not caused by an instruction.
static int was_sent(const siginfo_t *info) {
    return info->si_code <= 0 || info->si_code == SI_USER || info->si_code == SI_QUEUE;
}

// Maps zeros from the page at `address` to the end of the mapping that it belongs to. Returns 0 if it belongs to none.
static int fill(uintptr_t address) {
    for (fl_mapping *m = atomic_load(&mappings); m; m = m->next) {
        const uintptr_t begin = atomic_load(&m->begin), end = atomic_load(&m->end);
        // If it has changed in between, it is being freed or reused, and is not the one that this thread is reading.
        if (begin != atomic_load(&m->begin) || address < begin || address >= end || !begin) continue;
        const uintptr_t from = address / page_size * page_size;
        const int zeros = MAP_FIXED | MAP_PRIVATE | MAP_ANON;
        if (mmap((void *)from, end - from, PROT_READ, zeros, -1, 0) == MAP_FAILED) return 0;
        atomic_store(&m->lost, 1);
        return 1;
    }
    return 0;
}

// Does what would have been done without our handler. The handler before ours may itself put back the one that it
// found, which is ours, and raise the signal again, as Python's faulthandler does: then the one before that is called.
static void pass_on(int number, siginfo_t *info, void *context) {
    const int turn = atomic_fetch_add(&passing, 1);
    struct sigaction next = {.sa_handler = SIG_DFL};
    if (turn < 2) next = actions[turn];
    if (next.sa_flags & SA_SIGINFO) {
        next.sa_sigaction(number, info, context);
    } else if (next.sa_handler != SIG_DFL && next.sa_handler != SIG_IGN) {
        next.sa_handler(number);
    } else if (next.sa_handler == SIG_DFL || !was_sent(info)) {
        next.sa_handler = SIG_DFL; // a signal from an instruction cannot be ignored
        sigaction(number, &next, NULL);
        if (was_sent(info)) raise(number); // otherwise the instruction runs again, and raises it
    }
    atomic_fetch_sub(&passing, 1);
}

static void on_bus_error(int number, siginfo_t *info, void *context) {
    const int kept = errno;
    if (was_sent(info) || !fill((uintptr_t)info->si_addr)) pass_on(number, info, context);
    errno = kept;
}

static int same_action(const struct sigaction *a, const struct sigaction *b) {
    const int with_info = a->sa_flags & SA_SIGINFO;
    if (with_info != (b->sa_flags & SA_SIGINFO)) return 0;
    return with_info ? a->sa_sigaction == b->sa_sigaction : a->sa_handler == b->sa_handler;
}

void fl_mapping_guard(void) {
    struct sigaction ours = {.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER}, found;
    ours.sa_sigaction = on_bus_error;
    sigemptyset(&ours.sa_mask);
    if (sigaction(SIGBUS, NULL, &found) || same_action(&found, &ours)) return;
    // Ours is not installed now, so nothing reads what is written here until it is.
    if (!same_action(&found, &actions[0])) {
        actions[1] = actions[0];
        actions[0] = found;
    }
    page_size = page_bytes();
    atomic_store(&passing, 0);
    sigaction(SIGBUS, &ours, NULL);
}

#endif

// Maps fd's file as m, which is not in use.
static int open_in(fl_mapping *m, int fd) {
    void *p = NULL;
    int problem = version_of(fd, &m->at_first);
    if (problem) return problem;
    if (m->at_first.size <= 0 || (uint64_t)m->at_first.size > SIZE_MAX / 2) return EINVAL;
    m->bytes = (size_t)m->at_first.size;
    m->fd = copy_of(fd);
    if (m->fd < 0) return errno;
    problem = map(fd, m->bytes, &p);
    if (problem) {
        close_file(m->fd);
        return problem;
    }
    atomic_store(&m->lost, 0);
    atomic_store(&m->seen, 0);
    atomic_store(&m->end, (uintptr_t)p + fl_round_up(m->bytes, page_bytes()));
    atomic_store(&m->begin, (uintptr_t)p);
    return 0;
}

int fl_mapping_new(int fd, fl_mapping **out) {
    fl_mapping *m = atomic_load(&mappings);
    while (m && atomic_load(&m->begin)) m = m->next;
    if (!m) {
        m = calloc(1, sizeof *m);
        if (!m) return ENOMEM;
        m->next = atomic_load(&mappings);
        atomic_store(&mappings, m);
    }
    const int problem = open_in(m, fd);
    if (problem) return problem;
    fl_mapping_guard();
    *out = m;
    return 0;
}

void fl_mapping_free(fl_mapping *m) {
    if (!m) return;
    void *p = (void *)atomic_load(&m->begin);
    const int fd = m->fd;
    const size_t bytes = m->bytes;
    atomic_store(&m->begin, 0); // before another mapping can get these addresses
    unmap(p, bytes);
    close_file(fd);
}

const void *fl_mapping_data(const fl_mapping *m) { return (const void *)atomic_load(&m->begin); }

size_t fl_mapping_bytes(const fl_mapping *m) { return m->bytes; }

int fl_mapping_fd(const fl_mapping *m) { return m->fd; }

fl_file_state fl_mapping_state(const fl_mapping *m) {
    version now;
    if (version_of(m->fd, &now)) return FL_FILE_UNREADABLE;
    const version *then = &m->at_first;
    const int same = now.size == then->size && now.seconds == then->seconds && now.nanoseconds == then->nanoseconds;
    const int lost = atomic_load(&m->lost);
    if (same) return lost ? FL_FILE_UNREADABLE : FL_FILE_SAME;
    return lost || now.size < m->at_first.size ? FL_FILE_TRUNCATED : FL_FILE_CHANGED;
}

fl_file_state fl_mapping_glance(fl_mapping *m) {
    enum { OFTEN = 100000 }; // nanoseconds: the system call takes 400, a token of the smallest models 20,000
    const int64_t now = (int64_t)(fl_now() * 1e9), seen = atomic_load(&m->seen);
    if (seen > 0 && now - seen < OFTEN && !atomic_load(&m->lost)) return FL_FILE_SAME;
    atomic_store(&m->seen, now);
    return fl_mapping_state(m);
}
