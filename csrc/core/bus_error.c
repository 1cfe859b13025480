/* Names the mapped file that a page could not be read from, before SIGBUS ends the process as it would have: the file
   got shorter, or its disk failed. Calls only what signal-safety(7) lists. */
#include "cgpt.h"

#ifdef __linux__
#include <fcntl.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <unistd.h>

/* The path in a line of /proc/self/maps, "from-to perms offset device inode path", if the address lies in it. */
static const char *path_of(const char *line, uintptr_t address) {
    uintptr_t bound[2] = {0, 0};
    for (int i = 0; i < 2; i++, line++)
        for (; *line && *line != '-' && *line != ' '; line++)
            bound[i] = bound[i] * 16 + (uintptr_t)(*line <= '9' ? *line - '0' : *line - 'a' + 10);
    return address >= bound[0] && address < bound[1] ? strchr(line, '/') : NULL;
}

static void say(const char *text) {
    if (write(STDERR_FILENO, text, strlen(text)) < 0) return;
}

static void name_file(int number, siginfo_t *info, void *context) {
    static atomic_flag named = ATOMIC_FLAG_INIT;
    (void)context;
    while (atomic_flag_test_and_set(&named)) pause(); /* another thread's access ends the process */
    char line[8192]; /* PATH_MAX, each of its characters escaped at worst, is longer; such a path is cut */
    size_t used = 0;
    const char *path = NULL;
    int maps = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    while (!path && maps >= 0 && read(maps, line + used, 1) == 1) {
        if (line[used] != '\n') {
            used += used < sizeof line - 2;
            continue;
        }
        line[used] = 0;
        used = 0;
        path = path_of(line, (uintptr_t)info->si_addr);
    }
    say("cgpt: error: ");
    say(path ? path : "a mapped file");
    say(" could not be read: it got shorter while it was in use, or its disk failed; replace checkpoints by renaming "
        "new files into their place\n");
    signal(number, SIG_DFL); /* on return the same access ends the process */
}

void cg_name_bus_errors(void) {
    struct sigaction action = {.sa_sigaction = name_file, .sa_flags = SA_SIGINFO};
    sigaction(SIGBUS, &action, NULL);
}
#else
void cg_name_bus_errors(void) {}
#endif
