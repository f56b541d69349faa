/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE

#include "nvfm_dial.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include <linux/vm_sockets.h>

enum { POLL_MS = 45, DEFAULT_PORT = 6666 };

int64_t now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (int64_t)time.tv_sec * 1000 + time.tv_nsec / 1000000;
}

bool wait_for(int fd, short events, int64_t deadline)
{
    struct pollfd waiting = {.fd = fd, .events = events};
    for (;;) {
        int64_t left = deadline - now_ms();
        int ready = poll(&waiting, 1, left < 0 ? 0 : left > INT32_MAX ? INT32_MAX : (int)left);
        if (ready > 0)
            return true;
        if (ready == 0 && left <= 0)
            return false;
        if (ready < 0 && errno != EINTR)
            return false;
    }
}

static void sleep_until(int64_t when)
{
    struct timespec time = {.tv_sec = when / 1000, .tv_nsec = when % 1000 * 1000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &time, NULL) == EINTR)
        ;
}

static int new_socket(int family)
{
    return socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
}

/* Ends a connect on `fd`; returns `fd` once it is connected, or closes it and returns -1. */
static int connected(int fd, const void *address, socklen_t size, int64_t deadline)
{
    int error = 0;
    socklen_t error_size = sizeof error;
    if (fd < 0)
        return -1;
    if (connect(fd, address, size) == 0)
        return fd;
    if ((errno == EINPROGRESS || errno == EINTR) && wait_for(fd, POLLOUT, deadline) &&
        getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &error_size) == 0 && error == 0)
        return fd;
    close(fd);
    return -1;
}

static int connect_unix(const char *path, int64_t deadline)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length == 0 || length >= sizeof address.sun_path)
        return -1;
    memcpy(address.sun_path, path, length);
    return connected(new_socket(AF_UNIX), &address, sizeof address, deadline);
}

/* Cuts "host:port", "host", "v6", "[v6]:port" or "[v6]" in two; the port stays NULL where there is none. */
static void split_port(char *text, char **host, char **port)
{
    char *end = text[0] == '[' ? strchr(text, ']') : NULL;
    char *colon = strrchr(end != NULL ? end : text, ':');
    if (end == NULL && strchr(text, ':') != colon)
        colon = NULL;
    *host = end != NULL ? text + 1 : text;
    *port = NULL;
    if (colon != NULL) {
        *colon = '\0';
        *port = colon + 1;
    }
    if (end != NULL)
        *end = '\0';
}

static int connect_inet(char *text, int64_t deadline)
{
    char *host, *port, default_port[8];
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM}, *found = NULL;
    int fd = -1, on = 1;

    snprintf(default_port, sizeof default_port, "%d", DEFAULT_PORT);
    split_port(text, &host, &port);
    if (host[0] == '\0' || getaddrinfo(host, port != NULL ? port : default_port, &hints, &found) != 0)
        return -1;
    for (struct addrinfo *each = found; each != NULL && fd < 0; each = each->ai_next)
        fd = connected(new_socket(each->ai_family), each->ai_addr, each->ai_addrlen, deadline);
    freeaddrinfo(found);
    if (fd >= 0)
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    return fd;
}

static int connect_vsock(const char *text, int64_t deadline)
{
    struct sockaddr_vm address = {.svm_family = AF_VSOCK};
    char after;
    if (sscanf(text, "%u:%u%c", &address.svm_cid, &address.svm_port, &after) != 2)
        return -1;
    return connected(new_socket(AF_VSOCK), &address, sizeof address, deadline);
}

/* Copies an address without the blanks around it; NVIDIA's own configuration has one at its end. */
static void trim(char into[MAX_TEXT + 1], const char from[MAX_TEXT])
{
    size_t start = 0, end = strnlen(from, MAX_TEXT);
    while (start < end && strchr(" \t\r\n", from[start]) != NULL)
        start++;
    while (end > start && strchr(" \t\r\n", from[end - 1]) != NULL)
        end--;
    memcpy(into, from + start, end - start);
    into[end - start] = '\0';
}

static int connect_once(enum address_type type, const char address[MAX_TEXT], int64_t deadline)
{
    char text[MAX_TEXT + 1];
    trim(text, address);
    switch (type) {
    case ADDRESS_UNIX:
        return connect_unix(text, deadline);
    case ADDRESS_VSOCK:
        return connect_vsock(text, deadline);
    default:
        return connect_inet(text, deadline);
    }
}

int dial(enum address_type type, const char address[MAX_TEXT], int64_t deadline)
{
    for (;;) {
        int64_t next = now_ms() + POLL_MS;
        int fd = connect_once(type, address, deadline);
        if (fd >= 0)
            return fd;
        sleep_until(next < deadline ? next : deadline);
        if (now_ms() >= deadline)
            return -1;
    }
}
