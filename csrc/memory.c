// Memory that is aligned and zero, and takes no page of the machine before it is written.
#include <stdint.h>
#include <stdlib.h>

#include "fastllm.h"

#ifdef __linux__
#include <sys/mman.h>
#endif

// What to free, in the bytes before the pointer that is handed out.
typedef struct origin {
    void *base;
    size_t mapped; // bytes of the mapping; 0: it is from calloc
} origin;

static void *hand_out(char *base, size_t mapped, size_t align) {
    const uintptr_t at = ((uintptr_t)base + sizeof(origin) + align - 1) / align * align;
    ((origin *)at)[-1] = (origin){base, mapped};
    return (void *)at;
}

void *fl_alloc(size_t bytes) {
    enum { HUGE_PAGE = 2 << 20 };
    if (bytes > SIZE_MAX / 2) return NULL;
#ifdef __linux__
    if (bytes >= HUGE_PAGE) {
        // With pages of 4 KiB a core reads weights at half the speed: it spends the other half on looking up addresses.
        const size_t mapped = bytes + 2 * HUGE_PAGE;
        char *base = mmap(NULL, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (base == MAP_FAILED) return NULL;
        void *p = hand_out(base, mapped, HUGE_PAGE);
        madvise(p, bytes, MADV_HUGEPAGE);
        return p;
    }
#endif
    char *base = calloc(1, bytes + sizeof(origin) + FL_ALIGN);
    return base ? hand_out(base, 0, FL_ALIGN) : NULL;
}

void fl_free(void *p) {
    if (!p) return;
    const origin from = ((origin *)p)[-1];
#ifdef __linux__
    if (from.mapped) {
        munmap(from.base, from.mapped);
        return;
    }
#endif
    free(from.base);
}
