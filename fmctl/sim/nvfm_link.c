/* SPDX-License-Identifier: Apache-2.0 */
#define _GNU_SOURCE

#include "nvfm_link.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CALL_TIMEOUT_MS = 70000, GREETING_MS = 100 };

enum {
    WORD = sizeof(uint32_t),
    MAX_REPLY = 4 * WORD + MAX_PARTITIONS * (4 * WORD + sizeof(struct gpu[MAX_GPUS])),
    MAX_REQUEST = 3 * WORD + sizeof(uint32_t[MAX_PARTITIONS]),
};

/*
 * A handle is the id of one of these. `turn` is held for a whole call and guards what a call uses; `table_lock` guards
 * the rest. `owed` counts the replies still to come: the server's greeting, and those to calls that were given up.
 */
struct connection {
    struct connection *next;
    uintptr_t id;
    unsigned users;
    bool dropped;
    int fd;
    pthread_mutex_t turn;
    unsigned owed;
    size_t filled;
    uint8_t received[WORD + MAX_REPLY];
};

static pthread_mutex_t table_lock = PTHREAD_MUTEX_INITIALIZER;
static struct connection *table;

/* Ids lie where no process has memory, but not in the first page: Go's runtime aborts on a pointer into that. */
static uintptr_t last_id = UINTPTR_MAX / 2;

static bool initialised;
static _Atomic int64_t call_timeout_ms;

int link_start(void)
{
    const char *timeout = getenv("FMCTL_SIM_CALL_TIMEOUT_MS");
    pthread_mutex_lock(&table_lock);
    int code = initialised ? IN_USE : SUCCESS;
    if (code == SUCCESS)
        call_timeout_ms = timeout != NULL && atoi(timeout) > 0 ? atoi(timeout) : CALL_TIMEOUT_MS;
    initialised = true;
    pthread_mutex_unlock(&table_lock);
    return code;
}

bool link_is_up(void)
{
    pthread_mutex_lock(&table_lock);
    bool answer = initialised;
    pthread_mutex_unlock(&table_lock);
    return answer;
}

/* Takes over `fd`, whatever comes of it. */
static struct connection *create(int fd)
{
    struct connection *connection = malloc(sizeof *connection);
    if (connection == NULL) {
        close(fd);
        return NULL;
    }
    memset(connection, 0, offsetof(struct connection, received));
    connection->fd = fd;
    connection->owed = 1;
    pthread_mutex_init(&connection->turn, NULL);
    return connection;
}

static void destroy(struct connection *connection)
{
    close(connection->fd);
    pthread_mutex_destroy(&connection->turn);
    free(connection);
}

/* Puts a connection into the table and makes its handle; NULL if the library was shut down meanwhile. */
static void *enter(struct connection *connection)
{
    void *handle = NULL;
    pthread_mutex_lock(&table_lock);
    if (initialised) {
        connection->id = ++last_id;
        connection->next = table;
        table = connection;
        handle = (void *)connection->id;
    }
    pthread_mutex_unlock(&table_lock);
    return handle;
}

/*
 * Takes a connection out of the table, and wakes whoever waits on it; false if that was done before. The caller has
 * `table_lock`. The last user destroys it.
 */
static bool drop_locked(struct connection *connection)
{
    struct connection **link = &table;
    if (connection->dropped)
        return false;
    while (*link != connection)
        link = &(*link)->next;
    *link = connection->next;
    connection->dropped = true;
    shutdown(connection->fd, SHUT_RDWR);
    return true;
}

static bool drop(struct connection *connection)
{
    pthread_mutex_lock(&table_lock);
    bool dropped = drop_locked(connection);
    pthread_mutex_unlock(&table_lock);
    return dropped;
}

int link_stop(void)
{
    pthread_mutex_lock(&table_lock);
    int code = initialised ? SUCCESS : UNINITIALISED;
    initialised = false;
    while (table != NULL) {
        struct connection *connection = table;
        drop_locked(connection);
        if (connection->users == 0)
            destroy(connection);
    }
    pthread_mutex_unlock(&table_lock);
    return code;
}

static struct connection *acquire(const void *handle)
{
    pthread_mutex_lock(&table_lock);
    struct connection *found = table;
    while (found != NULL && found->id != (uintptr_t)handle)
        found = found->next;
    if (found != NULL)
        found->users++;
    pthread_mutex_unlock(&table_lock);
    return found;
}

static void release(struct connection *connection)
{
    pthread_mutex_lock(&table_lock);
    bool last = --connection->users == 0 && connection->dropped;
    pthread_mutex_unlock(&table_lock);
    if (last)
        destroy(connection);
}

/* Whether the other side has closed. */
static bool is_closed(int fd)
{
    return wait_for(fd, POLLRDHUP, now_ms());
}

void take(struct reader *reader, void *into, size_t size)
{
    if (reader->left < size) {
        reader->bad = true;
        memset(into, 0, size);
        return;
    }
    memcpy(into, reader->at, size);
    reader->at += size;
    reader->left -= size;
}

uint32_t take_word(struct reader *reader)
{
    uint32_t word;
    take(reader, &word, sizeof word);
    return word;
}

uint32_t take_rows(struct reader *reader, uint32_t most)
{
    uint32_t rows = take_word(reader);
    if (rows <= most)
        return rows;
    reader->bad = true;
    return 0;
}

static int send_all(int fd, const uint8_t *bytes, size_t size, int64_t deadline)
{
    while (size > 0) {
        ssize_t sent = send(fd, bytes, size, MSG_NOSIGNAL);
        if (sent >= 0) {
            bytes += sent;
            size -= (size_t)sent;
        } else if (errno == EAGAIN) {
            if (!wait_for(fd, POLLOUT, deadline))
                return GENERIC_ERROR;
        } else if (errno != EINTR) {
            return CONNECTION_NOT_VALID;
        }
    }
    return SUCCESS;
}

static int send_request(int fd, const struct request *request, int64_t deadline)
{
    uint8_t frame[MAX_REQUEST];
    uint32_t head[] = {(uint32_t)(2 * WORD + request->size), request->operation, request->argument};
    memcpy(frame, head, sizeof head);
    if (request->size > 0)
        memcpy(frame + sizeof head, request->payload, request->size);
    return send_all(fd, frame, sizeof head + request->size, deadline);
}

static int receive_some(struct connection *from, int64_t deadline)
{
    for (;;) {
        ssize_t got = recv(from->fd, from->received + from->filled, sizeof from->received - from->filled, 0);
        if (got > 0) {
            from->filled += (size_t)got;
            return SUCCESS;
        }
        if (got == 0 || (errno != EAGAIN && errno != EINTR))
            return CONNECTION_NOT_VALID;
        if (errno == EAGAIN && !wait_for(from->fd, POLLIN, deadline))
            return GENERIC_ERROR;
    }
}

/* Receives one whole frame to the start of the buffer and tells its size, the length word included. */
static int receive_frame(struct connection *from, size_t *size, int64_t deadline)
{
    for (;;) {
        uint32_t length = WORD;
        if (from->filled >= WORD)
            memcpy(&length, from->received, WORD);
        if (length < WORD || length > MAX_REPLY)
            return CONNECTION_NOT_VALID;
        *size = WORD + length;
        if (from->filled >= *size)
            return SUCCESS;
        int code = receive_some(from, deadline);
        if (code != SUCCESS)
            return code;
    }
}

static void discard_frame(struct connection *from, size_t size)
{
    from->filled -= size;
    memmove(from->received, from->received + size, from->filled);
    from->owed--;
}

/* Receives the reply to the last request; those to earlier ones are passed over. */
static int receive_reply(struct connection *from, size_t *size, int64_t deadline)
{
    for (;;) {
        int code = receive_frame(from, size, deadline);
        if (code != SUCCESS || from->owed == 1)
            return code;
        discard_frame(from, *size);
    }
}

/* Reads the reply in the buffer, whose payload is decoded if its code is success; whether it could be read. */
static bool decode_reply(const struct connection *from, size_t size, decoder *decode, void *into, int *code)
{
    struct reader reply = {.at = from->received + WORD, .left = size - WORD};
    *code = (int32_t)take_word(&reply);
    if (*code == SUCCESS && decode != NULL)
        decode(&reply, into);
    return !reply.bad;
}

/* One call on a connection whose turn the caller has. A call given up leaves the connection usable. */
static int exchange(struct connection *with, const struct request *request, decoder *decode, void *into)
{
    int64_t deadline = now_ms() + call_timeout_ms;
    size_t size;
    int code = send_request(with->fd, request, deadline);
    if (code == SUCCESS) {
        with->owed++;
        code = receive_reply(with, &size, deadline);
        if (code == GENERIC_ERROR)
            return code;
        if (code == SUCCESS && decode_reply(with, size, decode, into, &code)) {
            discard_frame(with, size);
            return code;
        }
        code = CONNECTION_NOT_VALID;
    }
    drop(with);
    return code;
}

int link_call(const void *handle, const struct request *request, decoder *decode, void *into)
{
    struct connection *connection = acquire(handle);
    if (connection == NULL)
        return CONNECTION_NOT_VALID;
    pthread_mutex_lock(&connection->turn);
    int code = exchange(connection, request, decode, into);
    pthread_mutex_unlock(&connection->turn);
    release(connection);
    return code;
}

/* Waits a little for the server's greeting: one that closes at once is told apart, one that hangs is not. */
static bool is_greeted(struct connection *connection)
{
    size_t size;
    int code = receive_frame(connection, &size, now_ms() + GREETING_MS);
    if (code == SUCCESS)
        discard_frame(connection, size);
    return code != CONNECTION_NOT_VALID;
}

int link_open(enum address_type type, const struct connect_v1 *params, void **handle)
{
    int fd = dial(type, params->address, now_ms() + (int64_t)params->timeout_ms * 9 / 10);
    if (fd < 0)
        return CONNECTION_NOT_VALID;
    struct connection *connection = create(fd);
    if (connection == NULL)
        return GENERIC_ERROR;
    bool greeted = is_greeted(connection);
    *handle = greeted ? enter(connection) : NULL;
    if (*handle != NULL)
        return SUCCESS;
    destroy(connection);
    return greeted ? UNINITIALISED : CONNECTION_NOT_VALID;
}

int link_close(const void *handle)
{
    struct connection *connection = acquire(handle);
    if (connection == NULL)
        return BAD_PARAM;
    bool closed = is_closed(connection->fd);
    bool dropped = drop(connection);
    release(connection);
    return dropped && !closed ? SUCCESS : BAD_PARAM;
}
