/* Threads of our own where the compiler has no OpenMP, as Apple's: a libomp that came with us would end the process
   when another package, as torch, brings a second one. */
#include "core/parallel.h"

#ifndef _OPENMP
#include <pthread.h>
#include <unistd.h>
#ifdef __APPLE__
#include <pthread/qos.h>
#endif

enum { SPINS = 2000 }; /* some 50 us, as long as libgomp's threads look for work before they sleep (runtime.py) */

/* One pool for the process. A member waits for `turn` to change: it has a new number each time, and in its low 16 bits
   how many members take part. Only those read the job, so the caller may write the next one when all of them are done.
 */
static struct {
    pthread_mutex_t use, sleep; /* held by the caller whose job runs; for what follows */
    pthread_cond_t woken, done;
    int cpus, members, asleep;
    uint64_t turn, born[CG_MAX_THREADS]; /* the turn when a member was made */
    cg_task_fn *fn;
    void *job;
    int64_t tasks, next, busy;
} pool = {.use = PTHREAD_MUTEX_INITIALIZER,
          .sleep = PTHREAD_MUTEX_INITIALIZER,
          .woken = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb"); /* yield does nothing on most */
#endif
}

static void take_tasks(int member) {
    int64_t i;
    while ((i = __atomic_fetch_add(&pool.next, 1, __ATOMIC_RELAXED)) < pool.tasks) pool.fn(pool.job, i, member);
}

/* The turn after `last`, once there is one. */
static uint64_t next_turn(uint64_t last) {
    uint64_t turn = last;
    for (int i = 0; i < SPINS && (turn = __atomic_load_n(&pool.turn, __ATOMIC_ACQUIRE)) == last; i++) relax();
    if (turn != last) return turn;
    pthread_mutex_lock(&pool.sleep);
    pool.asleep++;
    while ((turn = __atomic_load_n(&pool.turn, __ATOMIC_ACQUIRE)) == last) pthread_cond_wait(&pool.woken, &pool.sleep);
    pool.asleep--;
    pthread_mutex_unlock(&pool.sleep);
    return turn;
}

static void *live(void *data) {
    int number = (int)(intptr_t)data;
    uint64_t turn = pool.born[number];
#ifdef __APPLE__
    pthread_set_qos_class_self_np(QOS_CLASS_USER_INITIATED, 0); /* on the performance cores */
#endif
    for (;;) {
        turn = next_turn(turn);
        if (number > (int)(turn & 0xffff)) continue;
        take_tasks(number);
        if (__atomic_sub_fetch(&pool.busy, 1, __ATOMIC_ACQ_REL)) continue;
        pthread_mutex_lock(&pool.sleep); /* or the caller, if it goes to sleep now, would miss it */
        pthread_cond_signal(&pool.done);
        pthread_mutex_unlock(&pool.sleep);
    }
    return NULL;
}

/* As many members as there shall be, or as the system starts. */
static int grow(int members) {
    while (pool.members < members) {
        pthread_t id;
        pool.born[pool.members + 1] = pool.turn;
        if (pthread_create(&id, NULL, live, (void *)(intptr_t)(pool.members + 1))) break;
        pthread_detach(id);
        pool.members++;
    }
    return (int)cg_min(members, pool.members);
}

/* No job runs while the process forks: one that is about to start threads holds locks of the C library. */
static void before_fork(void) { pthread_mutex_lock(&pool.use); }
static void in_parent(void) { pthread_mutex_unlock(&pool.use); }

/* A child has none of its parent's threads; it starts its own. */
static void in_child(void) {
    pthread_mutex_init(&pool.use, NULL);
    pthread_mutex_init(&pool.sleep, NULL);
    pthread_cond_init(&pool.woken, NULL);
    pthread_cond_init(&pool.done, NULL);
    pool.members = pool.asleep = 0;
}

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(before_fork, in_parent, in_child); }

const char *cg_thread_runtime(void) { return "pthreads"; }

int cg_threads_short(int *wanted) { return *wanted = 0; }

int cg_openmp_places(CG_UNUSED int *cpus, CG_UNUSED int max) { return 0; }

/* Two callers at once: the second does its job alone. */
void cg_parallel(int threads, int64_t tasks, cg_task_fn *fn, void *job) {
    int cpus = __atomic_load_n(&pool.cpus, __ATOMIC_RELAXED);
    if (!cpus) {
        cpus = (int)cg_max(1, sysconf(_SC_NPROCESSORS_ONLN));
        __atomic_store_n(&pool.cpus, cpus, __ATOMIC_RELAXED);
    }
    int members = cg_team((int)cg_min(threads, 2 * cpus), tasks) - 1; /* as parallel.c */
    if (members < 1 || pthread_mutex_trylock(&pool.use)) {
        for (int64_t i = 0; i < tasks; i++) fn(job, i, 0);
        return;
    }
    members = grow(members);
    pool.fn = fn, pool.job = job, pool.tasks = tasks;
    pool.next = 0, pool.busy = members;
    uint64_t turn = ((pool.turn >> 16) + 1) << 16 | (uint64_t)members;
    pthread_mutex_lock(&pool.sleep); /* or one that goes to sleep now would miss it */
    __atomic_store_n(&pool.turn, turn, __ATOMIC_RELEASE);
    if (pool.asleep) pthread_cond_broadcast(&pool.woken);
    pthread_mutex_unlock(&pool.sleep);
    take_tasks(0);
    for (int i = 0; i < SPINS && __atomic_load_n(&pool.busy, __ATOMIC_ACQUIRE); i++) relax();
    pthread_mutex_lock(&pool.sleep);
    while (__atomic_load_n(&pool.busy, __ATOMIC_ACQUIRE)) pthread_cond_wait(&pool.done, &pool.sleep);
    pthread_mutex_unlock(&pool.sleep);
    pthread_mutex_unlock(&pool.use);
}
#endif
