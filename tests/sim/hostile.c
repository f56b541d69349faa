/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Drives the library, linked in with sanitizers, the way hostile company would:
 *
 *   hostile many PATH     threads that share a handle, open their own, and disconnect under each other
 *   hostile calls PATH    every call once, whatever it returns, and then again on what is left of the handle
 *   hostile stop PATH     shut the library down while threads are in calls
 *
 * PATH is a unix socket. It exits with 0 if nothing that must hold was broken; the sanitizers see to the rest.
 */
#define _GNU_SOURCE

#include <pthread.h>
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

static void *open_at(const char *path)
{
    struct {
        uint32_t version;
        char address[256];
        uint32_t timeout_ms, is_unix;
    } params = {.version = 0x0100010C, .timeout_ms = 2000, .is_unix = 1};
    void *handle = NULL;
    snprintf(params.address, sizeof params.address, "%s", path);
    return fmConnect(&params, &handle) == 0 ? handle : NULL;
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

static const char *path;
static void *shared;

static void *share(void *unused)
{
    (void)unused;
    for (int round = 0; round < ROUNDS; round++) {
        void *own = open_at(path);
        every_call(own);
        every_call(shared);
        if (own == NULL || fmDisconnect(own) != 0 || fmDisconnect(own) != -1)
            abort();
    }
    return NULL;
}

static void *open_and_leave(void *unused)
{
    (void)unused;
    for (int round = 0; round < ROUNDS; round++)
        every_call(open_at(path));
    return NULL;
}

static void *disconnect_shared(void *unused)
{
    (void)unused;
    fmDisconnect(shared);
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

static void *stop(void *unused)
{
    (void)unused;
    for (int round = 0; round < ROUNDS; round++) {
        if (fmLibShutdown() != 0)
            abort();
        if (fmLibInit() != 0)
            abort();
    }
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc != 3 || fmLibInit() != 0)
        return 2;
    path = argv[2];
    shared = open_at(path);
    if (strcmp(argv[1], "many") == 0) {
        run(share, share);
        run(share, disconnect_shared);
    } else if (strcmp(argv[1], "stop") == 0) {
        run(open_and_leave, stop);
    } else {
        every_call(shared);
        every_call(shared);
        fmDisconnect(shared);
    }
    return fmLibShutdown() != 0;
}
