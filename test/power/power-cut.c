/*
 * Cuts the power of a process, for tests: an LD_PRELOAD between SQLite and the kernel.
 *
 * It remembers every write to the database, its write-ahead log and its rollback journal that was not synced
 * yet. At the operation POWER_CUT_AT (writes, truncations and syncs of these files count; with POWER_CUT_IN=db
 * only those of the database itself, which are in checkpoints) it undoes all of them, puts a random part of
 * them back in their order, whole or torn at sectors, and ends the process: what is then in the files is what
 * a disk may hold after the power went.
 *
 * It can also let calls fail with EIO: POWER_FAULT is CALL:FILE:N with CALL one of sync, write, read and FILE
 * one of db, wal; N-M means all of these calls, N+ all from the Nth on. As on Linux, what a failed sync should
 * have written counts as written for later syncs; unless it is written once more it is lost, and undone when
 * the process ends. FILE shm, the shared memory of the log, is only ever written to make it larger, and fails
 * with ENOSPC.
 *
 * POWER_FILE is the path of the database, POWER_SEED the seed of what is random. Not shown: directory entries
 * that are lost, and disks that lie about a sync.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { sector = 512, max_fds = 65536, max_files = 256 };
enum kind { none, db, wal, shm, journal };
enum call { call_sync, call_write, call_read };

struct file { ino_t ino; int fd; enum kind kind; };

/* A write, or a truncation (data == NULL), that may be lost. */
struct op {
  struct op *before, *after;
  struct file *file;
  int doomed;
  off_t at, old_size;
  size_t length, old_length;
  char *data, *old;
};

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static struct file files[max_files];
static int file_count;
static struct file *file_of[max_fds];
static struct op *first, *last;
static const char *path;
static long cut_at, operations;
static int only_db;
static uint64_t luck;
static struct { int on; enum call call; enum kind kind; long from, until, seen; } fault;

static ssize_t real_pread(int fd, void *to, size_t n, off_t at) { return syscall(SYS_pread64, fd, to, n, at); }
static ssize_t real_pwrite(int fd, const void *from, size_t n, off_t at) {
  return syscall(SYS_pwrite64, fd, from, n, at);
}

static void must(int ok, const char *what) {
  if (ok) return;
  dprintf(2, "power-cut: %s: %s\n", what, strerror(errno));
  syscall(SYS_exit_group, 99);
}

__attribute__((constructor)) static void begin(void) {
  char call[8], file[8], more;
  const char *spec = getenv("POWER_FAULT"), *at = getenv("POWER_CUT_AT"), *seed = getenv("POWER_SEED");
  path = getenv("POWER_FILE");
  cut_at = at ? atol(at) : 0;
  only_db = getenv("POWER_CUT_IN") != NULL;
  luck = (seed ? strtoull(seed, NULL, 10) : 0) * 2654435761u + 88172645463325252ull;
  if (!spec) return;
  int found = sscanf(spec, "%7[a-z]:%7[a-z]:%ld%c%ld", call, file, &fault.from, &more, &fault.until);
  must(found >= 3, "POWER_FAULT");
  if (found < 5) fault.until = found == 3 ? fault.from : LONG_MAX;
  fault.on = 1;
  fault.call = !strcmp(call, "sync") ? call_sync : !strcmp(call, "write") ? call_write : call_read;
  fault.kind = !strcmp(file, "wal") ? wal : !strcmp(file, "shm") ? shm : db;
}

static double next_luck(void) {
  luck ^= luck << 13;
  luck ^= luck >> 7;
  luck ^= luck << 17;
  return (double)(luck >> 11) / (double)(1ull << 53);
}

static enum kind kind_of(const char *name) {
  size_t n = path ? strlen(path) : 0;
  if (!n || strncmp(name, path, n)) return none;
  name += n;
  if (!*name) return db;
  if (!strcmp(name, "-wal")) return wal;
  if (!strcmp(name, "-shm")) return shm;
  return strcmp(name, "-journal") ? none : journal;
}

/* Every file has a descriptor of our own: to close one of SQLite's files would drop its locks. */
static void track(int fd, const char *name) {
  enum kind kind = fd < 0 || fd >= max_fds ? none : kind_of(name);
  struct stat now;
  char link[64];
  if (kind == none) return;
  pthread_mutex_lock(&mutex);
  must(!fstat(fd, &now), "fstat");
  for (int i = 0; i < file_count; i++)
    if (files[i].ino == now.st_ino && files[i].kind == kind) file_of[fd] = &files[i];
  if (!file_of[fd]) {
    must(file_count < max_files, "too many files");
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    files[file_count] = (struct file){now.st_ino, syscall(SYS_openat, AT_FDCWD, link, O_RDWR | O_CLOEXEC), kind};
    must(files[file_count].fd >= 0, "open");
    file_of[fd] = &files[file_count++];
  }
  pthread_mutex_unlock(&mutex);
}

static struct file *tracked(int fd) { return fd >= 0 && fd < max_fds ? file_of[fd] : NULL; }

static void forget(struct op *op) {
  *(op->before ? &op->before->after : &first) = op->after;
  *(op->after ? &op->after->before : &last) = op->before;
  free(op->data);
  free(op->old);
  free(op);
}

static void remember(struct file *file, const void *data, size_t length, off_t at) {
  struct op *op = calloc(1, sizeof *op);
  struct stat now;
  must(op && !fstat(file->fd, &now), "fstat");
  *op = (struct op){.before = last, .file = file, .at = at, .old_size = now.st_size, .length = length};
  off_t until = data ? at + (off_t)length : now.st_size;
  if (until > now.st_size) until = now.st_size;
  op->old_length = until > at ? until - at : 0;
  op->old = malloc(op->old_length + 1);
  must(real_pread(file->fd, op->old, op->old_length, at) == (ssize_t)op->old_length, "read before a write");
  if (data) op->data = memcpy(malloc(length + 1), data, length);
  *(last ? &last->after : &first) = op;
  last = op;
}

static void undo(struct op *op) {
  must(real_pwrite(op->file->fd, op->old, op->old_length, op->at) == (ssize_t)op->old_length, "undo");
  must(!syscall(SYS_ftruncate, op->file->fd, op->old_size), "undo");
}

/* What was never written is what was there before, or a hole where nothing was; the file keeps its size. */
static void lose(struct op *op) {
  struct stat now;
  must(!fstat(op->file->fd, &now), "fstat");
  for (size_t i = 0; i < op->length && op->at + (off_t)i < now.st_size; i++) {
    char was = i < op->old_length ? op->old[i] : 0;
    must(real_pwrite(op->file->fd, &was, 1, op->at + i) == 1, "lose");
  }
}

static void put_back(struct op *op, double keep) {
  int torn = op->data && next_luck() < 0.34;
  if (!torn && next_luck() >= keep) return;
  if (!op->data) {
    must(!syscall(SYS_ftruncate, op->file->fd, op->at), "truncate again");
    return;
  }
  for (size_t from = 0, n; from < op->length; from += n) {
    n = torn ? sector - (op->at + from) % sector : op->length;
    if (n > op->length - from) n = op->length - from;
    if (torn && next_luck() >= keep) continue;
    must(real_pwrite(op->file->fd, op->data + from, n, op->at + from) == (ssize_t)n, "write again");
  }
}

/* Called with the mutex held, which is never given back: nobody writes any more. */
static void cut(void) {
  static const double shares[] = {0, 0.25, 0.5, 0.75, 1};
  double keep = shares[(int)(next_luck() * 5)];
  long unsynced = 0, of_db = 0;
  for (struct op *op = last; op; op = op->before) undo(op);
  for (struct op *op = first; op; op = op->after) {
    unsynced++;
    if (op->file->kind == db) of_db++;
    if (!op->doomed) put_back(op, keep);
  }
  dprintf(2, "\npower-cut: at %ld, unsynced %ld, of the database itself %ld, kept %.2f\n", operations, unsynced,
          of_db, keep);
  syscall(SYS_exit_group, 137);
}

static void count(struct file *file) {
  if (only_db && file->kind != db) return;
  if (++operations == cut_at) cut();
}

static int fails(enum call call, struct file *file) {
  if (!fault.on || fault.call != call || fault.kind != file->kind) return 0;
  fault.seen++;
  return fault.seen >= fault.from && fault.seen <= fault.until;
}

static int refuse(void) {
  pthread_mutex_unlock(&mutex);
  errno = fault.kind == shm ? ENOSPC : EIO;
  return -1;
}

static ssize_t do_write(struct file *file, int fd, const void *data, size_t n, off_t at) {
  pthread_mutex_lock(&mutex);
  if (fails(call_write, file)) return refuse();
  int lasts = file->kind != shm;
  if (lasts) remember(file, data, n, at);
  ssize_t written = real_pwrite(fd, data, n, at);
  int error = errno;
  if (lasts && written != (ssize_t)n) forget(last);
  if (lasts) count(file);
  pthread_mutex_unlock(&mutex);
  errno = error;
  return written;
}

/* What was lost, but has been written once more and synced now, is on the disk after all. */
static void redeem(struct op *synced) {
  for (struct op *op = first, *after; op; op = after) {
    after = op->after;
    int covered = op->at >= synced->at && op->at + op->length <= synced->at + synced->length;
    if (op->doomed && op->file == synced->file && covered) forget(op);
  }
}

static int do_sync(int fd, long call) {
  struct file *file = tracked(fd);
  if (!file) return syscall(call, fd);
  pthread_mutex_lock(&mutex);
  count(file);
  int failed = fails(call_sync, file);
  for (struct op *op = first; failed && op; op = op->after) if (op->file == file) op->doomed = 1;
  if (failed) return refuse();
  int done = syscall(call, fd);
  for (struct op *op = last, *before; !done && op; op = before) {
    before = op->before;
    if (op->file != file || op->doomed) continue;
    if (fault.on) redeem(op);
    before = op->before;
    forget(op);
  }
  pthread_mutex_unlock(&mutex);
  return done;
}

static int do_truncate(int fd, off_t size) {
  struct file *file = tracked(fd);
  if (!file || file->kind == shm) return syscall(SYS_ftruncate, fd, size);
  pthread_mutex_lock(&mutex);
  remember(file, NULL, 0, size);
  int done = syscall(SYS_ftruncate, fd, size);
  if (done) forget(last);
  count(file);
  pthread_mutex_unlock(&mutex);
  return done;
}

static ssize_t do_read(int fd, void *to, size_t n, off_t at) {
  struct file *file = tracked(fd);
  if (file && fault.call == call_read) {
    pthread_mutex_lock(&mutex);
    if (fails(call_read, file)) return refuse();
    pthread_mutex_unlock(&mutex);
  }
  return real_pread(fd, to, n, at);
}

static int do_open(int dir, const char *name, int flags, va_list more) {
  mode_t mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(more, mode_t) : 0;
  int fd = syscall(SYS_openat, dir, name, flags, mode);
  track(fd, name);
  return fd;
}

#define OPEN(name, ...) \
  { va_list more; va_start(more, flags); int fd = do_open(__VA_ARGS__, name, flags, more); va_end(more); return fd; }
int open(const char *name, int flags, ...) OPEN(name, AT_FDCWD)
int open64(const char *name, int flags, ...) OPEN(name, AT_FDCWD)
int openat(int dir, const char *name, int flags, ...) OPEN(name, dir)
int openat64(int dir, const char *name, int flags, ...) OPEN(name, dir)

int close(int fd) {
  if (tracked(fd)) file_of[fd] = NULL;
  return syscall(SYS_close, fd);
}

ssize_t pwrite(int fd, const void *from, size_t n, off_t at) {
  struct file *file = tracked(fd);
  return file ? do_write(file, fd, from, n, at) : real_pwrite(fd, from, n, at);
}
ssize_t pwrite64(int fd, const void *from, size_t n, off_t at) { return pwrite(fd, from, n, at); }

ssize_t write(int fd, const void *from, size_t n) {
  /* SQLite writes its files with pwrite where there is one. */
  must(!tracked(fd), "write without an offset");
  return syscall(SYS_write, fd, from, n);
}

int ftruncate(int fd, off_t size) { return do_truncate(fd, size); }
int ftruncate64(int fd, off_t size) { return do_truncate(fd, size); }
int fsync(int fd) { return do_sync(fd, SYS_fsync); }
int fdatasync(int fd) { return do_sync(fd, SYS_fdatasync); }
ssize_t pread(int fd, void *to, size_t n, off_t at) { return do_read(fd, to, n, at); }
ssize_t pread64(int fd, void *to, size_t n, off_t at) { return do_read(fd, to, n, at); }

/* After a failed sync the process ends by itself; the disk never had what that sync was about. */
__attribute__((destructor)) static void end(void) {
  pthread_mutex_lock(&mutex);
  for (struct op *op = last; op; op = op->before) if (op->doomed) lose(op);
  dprintf(2, "\npower-cut: ended after %ld operations\n", operations);
  pthread_mutex_unlock(&mutex);
}
