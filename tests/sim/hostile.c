/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drives the library, linked in with sanitizers, the way hostile company would:
 *
 *   hostile many PATH     threads that share a handle, and that disconnect it under each other
 *   hostile calls PATH    every call once, whatever it returns, again on what is left of the handle, and each
 *                         question on a handle of its own, as a reply that cannot be read ends the connection
 *   hostile stop PATH     shut the library down while threads are in calls
 *
 * PATH is a unix socket. It exits with 0 if nothing that must hold was broken; the sanitizers see to the rest.
 */
#define _GNU_SOURCE

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int fmLibInit(void);
int fmLibShutdown(void);
int fmConnect(void *params, void **handle);
int fmDisconnect(void *handle);
int fmGetSupportedFabricPartitions(void *handle, void *list);
int fmGetUnsupportedFabricPartitions(void *handle, void *list);
int fmGetNvlinkFailedDevices(void *handle, void *devices);
int fmActivateFabricPartition(void *handle, unsigned int id);
int fmDeactivateFabricPartition(void *handle, unsigned int id);
int fmActivateFabricPartitionWithVFs(void *handle, unsigned int id, void *functions, unsigned int count);
int fmSetActivatedFabricPartitions(void *handle, void *list);

enum { THREADS = 6, ROUNDS = 60 };

/* On the heap and of the exact size, so that a byte too far is seen. */
static uint32_t *structure(size_t size, uint32_t version)
{
    uint32_t *words = malloc(size);
    memset(words, 0xAA, size);
    words[0] = version;
    return words;
}

static void *open_within(const char *path, uint32_t timeout_ms)
{
    struct {
        uint32_t version;
        char address[256];
        uint32_t timeout_ms, is_unix;
    } params = {.version = 0x0100010C, .timeout_ms = timeout_ms, .is_unix = 1};
    void *handle = NULL;
    snprintf(params.address, sizeof params.address, "%s", path);
    return fmConnect(&params, &handle) == 0 ? handle : NULL;
}

static void *open_at(const char *path)
{
    return open_within(path, 2000);
}

static void every_call(void *handle)
{
    uint32_t *list = structure(131852, 0x0102030C), *failed = structure(10428, 0x010028BC);
    uint32_t *lost = structure(4616, 0x01001208), *active = structure(264, 0x01000108);
    uint32_t *functions = structure(16, 0);
    fmGetSupportedFabricPartitions(handle, list);
    fmGetUnsupportedFabricPartitions(handle, lost);
    fmGetNvlinkFailedDevices(handle, failed);
    fmSetActivatedFabricPartitions(handle, active);
    active[1] = 64;
    fmSetActivatedFabricPartitions(handle, active);
    fmActivateFabricPartitionWithVFs(handle, 1, functions, 1);
    fmActivateFabricPartition(handle, 1);
    fmDeactivateFabricPartition(handle, 1);
    free(list);
    free(failed);
    free(lost);
    free(active);
    free(functions);
}

static void question(const char *path, int (*ask)(void *handle, void *answer), uint32_t version)
{
    uint32_t *answer = structure(version & 0xFFFFFF, version);
    void *handle = open_within(path, 200);
    ask(handle, answer);
    fmDisconnect(handle);
    free(answer);
}

static const char *path;
static void *_Atomic shared;

/* Uses the shared handle together with other threads: nobody may get another's answer. */
static void *share(void *unused)
{
    uint32_t *list = structure(131852, 0x0102030C);
    (void)unused;
    for (int round = 0; round < ROUNDS; round++) {
        if (fmGetSupportedFabricPartitions(shared, list) != 0 || list[1] != 15)
            abort();
        if (fmActivateFabricPartition(shared, 99) != -1 || fmActivateFabricPartitionWithVFs(shared, 1, list, 1) != -3)
            abort();
    }
    free(list);
    return NULL;
}

static atomic_bool done;

static void *use(void *unused)
{
    (void)unused;
    while (!done)
        every_call(shared);
    return NULL;
}

/* Takes the shared handle from under those that use it. */
static void *replace(void *unused)
{
    (void)unused;
    for (int round = 0; round < 4 * ROUNDS; round++) {
        if (fmDisconnect(shared) != 0 || fmDisconnect(shared) != -1)
            abort();
        shared = open_at(path);
    }
    done = true;
    return NULL;
}

static atomic_uint opened;

static void *open_and_leave(void *unused)
{
    (void)unused;
    while (!done) {
        void *own = open_at(path);
        opened++;
        every_call(own);
    }
    return NULL;
}

/* Shuts the library down while the others are in calls. */
static void *stop(void *unused)
{
    (void)unused;
    for (int round = 0; round < ROUNDS; round++) {
        for (unsigned before = opened; opened < before + THREADS;)
            sched_yield();
        if (fmLibShutdown() != 0 || fmLibInit() != 0)
            abort();
    }
    done = true;
    return NULL;
}

static void run(void *(*first)(void *), void *(*last)(void *))
{
    pthread_t threads[THREADS];
    for (int each = 0; each < THREADS; each++)
        if (pthread_create(&threads[each], NULL, each < THREADS - 1 ? first : last, NULL) != 0)
            abort();
    for (int each = 0; each < THREADS; each++)
        pthread_join(threads[each], NULL);
}

int main(int argc, char **argv)
{
    if (argc != 3 || fmLibInit() != 0)
        return 2;
    path = argv[2];
    shared = open_at(path);
    if (strcmp(argv[1], "many") == 0) {
        run(share, share);
        run(use, replace);
    } else if (strcmp(argv[1], "stop") == 0) {
        run(open_and_leave, stop);
    } else {
        every_call(shared);
        every_call(shared);
        fmDisconnect(shared);
        question(path, fmGetSupportedFabricPartitions, 0x0102030C);
        question(path, fmGetUnsupportedFabricPartitions, 0x01001208);
        question(path, fmGetNvlinkFailedDevices, 0x010028BC);
        char endless[300];
        memset(endless, 'x', sizeof endless - 1);
        endless[sizeof endless - 1] = '\0';
        if (open_within(endless, 1) != NULL)
            abort();
    }
    return fmLibShutdown() != 0;
}
