/* SPDX-License-Identifier: Apache-2.0 */
/*
 * libnvfm.so.1 of the simulator: the eleven functions of Fabric Manager's client SDK, forwarded to `fmctl sim fm`.
 *
 * wire.py describes the wire and is its other end. Return codes, their precedence and the times taken are those
 * measured on NVIDIA's library, as far as they can be seen from outside. Any number of threads may call.
 */
#include "nvfm_link.h"

#include <string.h>

enum operation {
    GET_SUPPORTED = 1,
    ACTIVATE,
    DEACTIVATE,
    SET_ACTIVATED,
    GET_FAILED,
    GET_UNSUPPORTED,
    ACTIVATE_WITH_VFS,
};

static void decode_partition_list(struct reader *reply, void *into)
{
    struct partition_list *list = into;
    *list = (struct partition_list){.version = LIST};
    list->count = take_word(reply);
    list->max_count = take_word(reply);
    uint32_t rows = take_rows(reply, MAX_PARTITIONS);
    for (struct partition *row = list->partitions; row < list->partitions + rows; row++) {
        row->id = take_word(reply);
        row->active = take_word(reply);
        row->gpu_count = take_word(reply);
        take(reply, row->gpus, take_rows(reply, MAX_GPUS) * sizeof *row->gpus);
    }
}

static void decode_unsupported_list(struct reader *reply, void *into)
{
    struct unsupported_list *list = into;
    *list = (struct unsupported_list){.version = UNSUPPORTED};
    list->count = take_word(reply);
    take(reply, list->partitions, take_rows(reply, MAX_PARTITIONS) * sizeof *list->partitions);
}

static void decode_failed_devices(struct reader *reply, void *into)
{
    struct failed_devices *failed = into;
    *failed = (struct failed_devices){.version = FAILED};
    failed->gpu_count = take_word(reply);
    failed->switch_count = take_word(reply);
    take(reply, failed->gpus, take_rows(reply, MAX_GPUS) * sizeof *failed->gpus);
}

/* What is wrong with a call before its handle is looked up: the library's state, the pointers, the version. */
static int check(const void *handle, const void *structure, uint32_t version)
{
    uint32_t given;
    if (!link_is_up())
        return UNINITIALISED;
    if (handle == NULL || structure == NULL)
        return BAD_PARAM;
    memcpy(&given, structure, sizeof given);
    return given == version ? SUCCESS : VERSION_MISMATCH;
}

static int get(const void *handle, enum operation operation, uint32_t version, decoder *decode, void *into)
{
    const struct request request = {.operation = operation};
    int code = check(handle, into, version);
    return code == SUCCESS ? link_call(handle, &request, decode, into) : code;
}

static int change(const void *handle, const struct request *request)
{
    if (!link_is_up())
        return UNINITIALISED;
    return handle != NULL ? link_call(handle, request, NULL, NULL) : BAD_PARAM;
}

/* The type of address that either version of the parameters asks for. */
static int address_type(const struct connect_v1 *params, enum address_type *type)
{
    const struct connect_v2 *newer = (const struct connect_v2 *)params;
    if (params->version == CONNECT_V1) {
        *type = params->is_unix ? ADDRESS_UNIX : ADDRESS_INET;
        return SUCCESS;
    }
    if (params->version != CONNECT_V2)
        return VERSION_MISMATCH;
    *type = newer->type;
    return *type >= ADDRESS_INET && *type <= ADDRESS_VSOCK ? SUCCESS : NOT_SUPPORTED;
}

int fmLibInit(void)
{
    return link_start();
}

int fmLibShutdown(void)
{
    return link_stop();
}

int fmConnect(const struct connect_v1 *params, void **handle)
{
    enum address_type type;
    if (!link_is_up())
        return UNINITIALISED;
    if (params == NULL || handle == NULL)
        return BAD_PARAM;
    int code = address_type(params, &type);
    return code == SUCCESS ? link_open(type, params, handle) : code;
}

int fmDisconnect(void *handle)
{
    return link_is_up() ? link_close(handle) : UNINITIALISED;
}

int fmGetSupportedFabricPartitions(void *handle, struct partition_list *list)
{
    return get(handle, GET_SUPPORTED, LIST, decode_partition_list, list);
}

int fmGetUnsupportedFabricPartitions(void *handle, struct unsupported_list *list)
{
    return get(handle, GET_UNSUPPORTED, UNSUPPORTED, decode_unsupported_list, list);
}

int fmGetNvlinkFailedDevices(void *handle, struct failed_devices *failed)
{
    return get(handle, GET_FAILED, FAILED, decode_failed_devices, failed);
}

int fmActivateFabricPartition(void *handle, uint32_t id)
{
    return change(handle, &(struct request){.operation = ACTIVATE, .argument = id});
}

int fmDeactivateFabricPartition(void *handle, uint32_t id)
{
    return change(handle, &(struct request){.operation = DEACTIVATE, .argument = id});
}

int fmActivateFabricPartitionWithVFs(void *handle, uint32_t id, const struct pci_device *vfs, uint32_t count)
{
    struct request request = {.operation = ACTIVATE_WITH_VFS, .argument = id, .payload = vfs};
    if (!link_is_up())
        return UNINITIALISED;
    if (vfs == NULL || count > MAX_GPUS)
        return BAD_PARAM;
    request.size = count * sizeof *vfs;
    return change(handle, &request);
}

int fmSetActivatedFabricPartitions(void *handle, const struct activated_list *list)
{
    struct request request = {.operation = SET_ACTIVATED};
    int code = check(handle, list, ACTIVATED);
    if (code != SUCCESS)
        return code;
    if (list->count > MAX_PARTITIONS)
        return BAD_PARAM;
    request.argument = list->count;
    request.payload = list->ids;
    request.size = list->count * sizeof *list->ids;
    return change(handle, &request);
}

int fmctlSimulated(void)
{
    return 1;
}
