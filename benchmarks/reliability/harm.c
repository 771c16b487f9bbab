// Loaded into a process before its libraries (LD_PRELOAD), to do it harm on request: see harm.py.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdio.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static atomic_long made, end_at, clock_s;
static atomic_int armed, torn, lock_errno;

void harm_arm(long call, int half) { made = 0; end_at = call; torn = half; armed = 1; }
long harm_made(void) { armed = 0; return made; }
void harm_locks(int number) { lock_errno = number; }
void harm_clock(long seconds) { clock_s = seconds; }

#define REAL(name) ({ static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name); real; })

static int on_disk(int file) {
    struct stat found;
    return !fstat(file, &found) && S_ISREG(found.st_mode);
}
// Whether the process ends at this change of the disk.
static int last(void) { return armed && atomic_fetch_add(&made, 1) + 1 == end_at; }
static void end(void) { kill(getpid(), SIGKILL); for (;;) pause(); }

#define WRITES(name, type, ...) \
    if (armed && on_disk(file) && last()) { if (torn && size > 1) { size_t all = size; size = all / 2; REAL(name)(file, data, size, ##__VA_ARGS__); } end(); } \
    return REAL(name)(file, data, size, ##__VA_ARGS__);

ssize_t write(int file, const void *data, size_t size) { WRITES(write, size_t) }
ssize_t pwrite(int file, const void *data, size_t size, off_t at) { WRITES(pwrite, size_t, at) }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) { WRITES(pwrite64, size_t, at) }
ssize_t writev(int file, const struct iovec *data, int size) { WRITES(writev, int) }

#define CHANGES(name, condition, ...) if (armed && (condition) && last()) end(); return REAL(name)(__VA_ARGS__);

int fsync(int file) { CHANGES(fsync, on_disk(file), file) }
int fdatasync(int file) { CHANGES(fdatasync, on_disk(file), file) }
int ftruncate(int file, off_t size) { CHANGES(ftruncate, 1, file, size) }
int ftruncate64(int file, off64_t size) { CHANGES(ftruncate64, 1, file, size) }
int truncate(const char *path, off_t size) { CHANGES(truncate, 1, path, size) }
int rename(const char *from, const char *to) { CHANGES(rename, 1, from, to) }
int renameat(int a, const char *from, int b, const char *to) { CHANGES(renameat, 1, a, from, b, to) }
int unlink(const char *path) { CHANGES(unlink, 1, path) }
int unlinkat(int folder, const char *path, int how) { CHANGES(unlinkat, 1, folder, path, how) }
int mkdir(const char *path, mode_t mode) { CHANGES(mkdir, 1, path, mode) }

static int is_lock(int what) { return what == F_SETLK || what == F_SETLKW || what == F_OFD_SETLK || what == F_OFD_SETLKW; }
#define LOCKS(name) \
    va_list more; va_start(more, what); void *third = va_arg(more, void *); va_end(more); \
    if (lock_errno && is_lock(what)) { errno = lock_errno; return -1; } \
    return REAL(name)(file, what, third);
int fcntl(int file, int what, ...) { LOCKS(fcntl) }
int fcntl64(int file, int what, ...) { LOCKS(fcntl64) }
int flock(int file, int what) { if (lock_errno) { errno = lock_errno; return -1; } return REAL(flock)(file, what); }

int clock_gettime(clockid_t which, struct timespec *now) {
    int found = REAL(clock_gettime)(which, now);
    if (!found && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += clock_s;
    return found;
}
int gettimeofday(struct timeval *now, void *zone) {
    int found = REAL(gettimeofday)(now, zone);
    if (!found) now->tv_sec += clock_s;
    return found;
}
time_t time(time_t *into) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (into) *into = now.tv_sec;
    return now.tv_sec;
}
