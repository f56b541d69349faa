/* SPDX-License-Identifier: Apache-2.0 */
/* The smallest client: connects to the unix socket it is given, activates partition 1, and lists. */
#include <stdint.h>
#include <stdio.h>
#include <string.h>

int fmLibInit(void);
int fmLibShutdown(void);
int fmConnect(void *params, void **handle);
int fmDisconnect(void *handle);
int fmActivateFabricPartition(void *handle, unsigned int id);
int fmGetSupportedFabricPartitions(void *handle, void *list);

static uint32_t list[131852 / 4];

int main(int argc, char **argv)
{
    struct {
        uint32_t version;
        char address[256];
        uint32_t timeout_ms, is_unix;
    } params = {.version = 0x0100010C, .timeout_ms = 1000, .is_unix = 1};
    void *handle = NULL;

    if (argc != 2)
        return 2;
    strncpy(params.address, argv[1], sizeof params.address - 1);
    list[0] = 0x0102030C;
    if (fmLibInit() != 0 || fmConnect(&params, &handle) != 0)
        return 3;
    if (fmActivateFabricPartition(handle, 1) != 0 || fmGetSupportedFabricPartitions(handle, list) != 0)
        return 4;
    const uint32_t *row = list + 3 + 2060 / 4;
    printf("%u partitions, partition %u %s\n", list[1], row[0], row[1] ? "active" : "inactive");
    return fmDisconnect(handle) != 0 || fmLibShutdown() != 0;
}
