// SPDX-License-Identifier: Apache-2.0
// Preloaded into a program: what it syncs to the disk is copied to a file beside it, whose name ends in ".synced", as
// what a power failure would leave. Where a file named "broken" lies in the same folder, syncing fails instead.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <unistd.h>

static int synced(int fd)
{
    char link[64], path[PATH_MAX], other[PATH_MAX + 16];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    struct stat status;
    if (length < 0 || fstat(fd, &status) || !S_ISREG(status.st_mode))
        return 0;
    path[length] = '\0';
    snprintf(other, sizeof other, "%.*s/broken", (int)(strrchr(path, '/') - path), path);
    if (access(other, F_OK) == 0) {
        errno = EIO;
        return -1;
    }
    snprintf(other, sizeof other, "%s.synced", path);
    int copy = open(other, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    off_t offset = 0;
    while (offset < status.st_size && sendfile(copy, fd, &offset, (size_t)(status.st_size - offset)) > 0)
        ;
    close(copy);
    return 0;
}

int fdatasync(int fd)
{
    return synced(fd);
}

int fsync(int fd)
{
    return synced(fd);
}
