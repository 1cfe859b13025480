/* Threads of OpenMP, with care for fork and for systems that start no more threads. */
#define _GNU_SOURCE /* dladdr, dl_iterate_phdr, sched_getcpu */
#include "core/parallel.h"

#ifdef _OPENMP /* else parallel_pthread.c */
#include <dlfcn.h>
#include <omp.h>
#include <pthread.h>
#include <string.h>
#include <time.h>

static int forks = 1;  /* one more than there were */
static int asked, had; /* by the last one who got fewer threads than it asked for; 0: nobody did */
static int kept, lost; /* the OpenMP in use could not give its threads back; it is in a child without them */

/* The OpenMP in this library gives the calling thread's pool back. Its function is looked up because a libgomp older
   than GCC 9 lacks it, and a process may have such a one: that of another package, loaded before ours. With musl it is
   never called: it takes every thread to be as far from its thread-local storage as the calling one is, which does
   not hold there for a library that came by dlopen, and so it joins what is no thread and crashes. */
static int give_back(const char *library) {
#if defined(__linux__) && !defined(__GLIBC__)
    return 0;
#endif
    void *handle = dlopen(library, RTLD_LAZY | RTLD_NOLOAD);
    if (!handle) return 0;
    int (*pause)(int) = (int (*)(int))dlsym(handle, "omp_pause_resource_all");
    int given = pause && pause(1) == 0; /* omp_pause_soft */
    dlclose(handle);
    return given;
}

#ifdef __linux__
#include <link.h>

typedef struct {
    const char *names[16];
    int n;
} libraries;

static int note_libgomp(struct dl_phdr_info *info, CG_UNUSED size_t size, void *to) {
    libraries *found = to;
    if (found->n < 16 && strstr(info->dlpi_name, "libgomp")) found->names[found->n++] = info->dlpi_name;
    return 0;
}

static void give_back_others(void) {
    libraries found = {.n = 0};
    dl_iterate_phdr(note_libgomp, &found); /* holds a lock of the loader, so dlopen comes after it */
    for (int i = 0; i < found.n; i++) give_back(found.names[i]);
}
#else
static void give_back_others(void) {}
#endif

/* A child of fork() has none of its parent's threads, and libgomp waits for them for ever. So the pool is given back
   before a fork; both sides start new threads when they next need them. So are those of every other libgomp, since
   torch, for one, brings its own: which of them serves whom depends on the order of imports. */
static void before_fork(void) {
    Dl_info ours;
    kept = !dladdr((void *)omp_get_max_threads, &ours) || !give_back(ours.dli_fname);
    give_back_others();
    __atomic_add_fetch(&forks, 1, __ATOMIC_RELAXED);
}

static void in_child(void) { lost |= kept; }

__attribute__((constructor)) static void watch_forks(void) { pthread_atfork(before_fork, NULL, in_child); }

static void *pass(void *gate) {
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* How many of so many threads, the calling one included, the system has: they are started, all at once, and ended. */
static int try_threads(int threads) {
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    pthread_t ids[CG_MAX_THREADS];
    int others = 0;
    pthread_mutex_lock(&gate);
    while (others < threads - 1 && !pthread_create(&ids[others], NULL, pass, &gate)) others++;
    pthread_mutex_unlock(&gate);
    for (int i = 0; i < others; i++) pthread_join(ids[i], NULL);
    nanosleep(&(struct timespec){.tv_nsec = 1000000}, NULL); /* the system counts them a little longer */
    return others + 1;
}

/* At most as many threads as the system starts. libgomp ends the process when it cannot start one, and keeps a pool for
   each thread that calls it: so each tries, once, and when it wants more than it tried. */
static int startable(int threads, int wanted) {
    static __thread struct {
        int forks, tried, had;
    } mine;
    int now = __atomic_load_n(&forks, __ATOMIC_RELAXED);
    if (mine.forks != now) {
        mine.forks = now;
        mine.tried = mine.had = 1;
    }
    if (threads > mine.tried) {
        int found = try_threads(wanted);
        if (found < wanted) {
            __atomic_store_n(&asked, wanted, __ATOMIC_RELAXED);
            __atomic_store_n(&had, found, __ATOMIC_RELAXED);
        }
        mine.tried = wanted;
        mine.had = (int)cg_max(found, mine.had);
    }
    return (int)cg_min(threads, mine.had);
}

const char *cg_thread_runtime(void) { return "OpenMP"; }

int cg_threads_short(int *wanted) {
    *wanted = __atomic_load_n(&asked, __ATOMIC_RELAXED);
    return __atomic_load_n(&had, __ATOMIC_RELAXED);
}

int cg_openmp_places(int *cpus, int max) {
    int found = 0;
    for (int i = 0; i < omp_get_num_places(); i++) {
        int n = omp_get_place_num_procs(i);
        if (n <= max - found) omp_get_place_proc_ids(i, cpus + found), found += n;
    }
    return found;
}

#ifdef __linux__
#include <sched.h>

/* Where a team has a thread for every CPU, each has one to itself: thread i the i-th of those that the caller may use,
   but for the one whose CPU the caller is on, which takes the first. Else the system may wake a thread on the caller's
   CPU, while a third one (that has just read a file, say) is on the other for a moment, and it waits there for
   milliseconds until the caller sleeps. The caller itself stays free: threads it starts inherit its CPUs. */
typedef struct {
    cpu_set_t allowed;
    int count, here; /* CPUs, 0 where OpenMP binds threads itself; the one that the caller is on */
} cpus;

/* Returns `threads`, but two for each CPU at the most: to wake 64 on two CPUs takes ten times as long as their work. */
static int find_cpus(cpus *found, int threads) {
    static __thread unsigned regions; /* which may wrap */
    static __thread cpu_set_t allowed;
    if (regions++ % 64 == 0 && sched_getaffinity(0, sizeof allowed, &allowed)) CPU_ZERO(&allowed);
    found->count = omp_get_proc_bind() == omp_proc_bind_false ? CPU_COUNT(&allowed) : 0;
    found->allowed = allowed;
    found->here = sched_getcpu();
    return found->count ? (int)cg_min(threads, 2 * found->count) : threads;
}

static int nth_cpu(const cpu_set_t *set, int n) {
    int cpu = 0;
    while (cpu < CPU_SETSIZE && (!CPU_ISSET(cpu, set) || n-- > 0)) cpu++;
    return cpu;
}

static void keep_apart(const cpus *of, int team, int thread) {
    static __thread int mine = -1;
    if (!thread) return;
    if (of->count != team) { /* a team of another size, later */
        if (mine >= 0 && sched_setaffinity(0, sizeof of->allowed, &of->allowed) == 0) mine = -1;
        return;
    }
    int cpu = nth_cpu(&of->allowed, thread);
    if (cpu == of->here) cpu = nth_cpu(&of->allowed, 0);
    if (cpu == mine || cpu >= CPU_SETSIZE) return;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one) == 0) mine = cpu;
}
#else
typedef int cpus;

static int find_cpus(CG_UNUSED cpus *found, int threads) { return threads; }
static void keep_apart(CG_UNUSED const cpus *of, CG_UNUSED int team, CG_UNUSED int thread) {}
#endif

void cg_parallel(int threads, int64_t tasks, cg_task_fn *fn, void *job) {
    cpus found;
    int team = lost ? 1 : cg_team(threads, tasks);
    if (team > 1) {
        threads = find_cpus(&found, threads);
        team = startable(cg_team(threads, tasks), cg_team(threads, cg_max(tasks, 64)));
    }
    if (team == 1) {
        for (int64_t i = 0; i < tasks; i++) fn(job, i, 0);
        return;
    }
#pragma omp parallel num_threads(team)
    {
        int thread = omp_get_thread_num();
        keep_apart(&found, team, thread);
#pragma omp for schedule(dynamic, 1) nowait
        for (int64_t i = 0; i < tasks; i++) fn(job, i, thread);
    }
}
#endif
