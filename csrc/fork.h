// What a child of fork() may do with teams of threads: see fork.c.
#ifndef FL_FORK_H
#define FL_FORK_H

// Whether the calling thread can lead a team. Where it cannot, it works alone.
int fl_can_lead(void);

#endif
