/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The binary interface of libnvfm, as far as nvfm_shim.c serves it: our own declarations, from the layouts that the
 * public SDK headers of branches 450 to 615 have in common. What the names say is ours; sizes, offsets and values are
 * not, and are asserted at the end.
 */
#ifndef FMCTL_NVFM_ABI_H
#define FMCTL_NVFM_ABI_H

#include <stddef.h>
#include <stdint.h>

enum {
    SUCCESS = 0,
    BAD_PARAM = -1,
    GENERIC_ERROR = -2,
    NOT_SUPPORTED = -3,
    UNINITIALISED = -4,
    VERSION_MISMATCH = -6,
    IN_USE = -7,
    CONNECTION_NOT_VALID = -9,
};

enum { MAX_GPUS = 16, MAX_SWITCHES = 12, MAX_PARTITIONS = 64, MAX_LINKS = 64, MAX_TEXT = 256 };

enum address_type { ADDRESS_INET = 1, ADDRESS_UNIX = 2, ADDRESS_VSOCK = 3 };

struct connect_v1 {
    uint32_t version;
    char address[MAX_TEXT];
    uint32_t timeout_ms;
    uint32_t is_unix;
};

struct connect_v2 {
    struct connect_v1 v1;
    uint32_t type;
};

struct pci_device {
    uint32_t domain, bus, device, function;
};

struct gpu {
    uint32_t physical_id;
    char uuid[80];
    char pci_bus_id[32];
    uint32_t links, max_links, line_rate;
};

struct partition {
    uint32_t id, active, gpu_count;
    struct gpu gpus[MAX_GPUS];
};

struct partition_list {
    uint32_t version, count, max_count;
    struct partition partitions[MAX_PARTITIONS];
};

struct activated_list {
    uint32_t version, count, ids[MAX_PARTITIONS];
};

struct failed_device {
    char uuid[80];
    char pci_bus_id[32];
    uint32_t port_count, ports[MAX_LINKS];
};

struct failed_devices {
    uint32_t version, gpu_count, switch_count;
    struct failed_device gpus[MAX_GPUS], switches[MAX_SWITCHES];
};

struct unsupported_partition {
    uint32_t id, gpu_count, gpus[MAX_GPUS];
};

struct unsupported_list {
    uint32_t version, count;
    struct unsupported_partition partitions[MAX_PARTITIONS];
};

#define EXPORT __attribute__((visibility("default")))

EXPORT int fmLibInit(void);
EXPORT int fmLibShutdown(void);
EXPORT int fmConnect(const struct connect_v1 *params, void **handle);
EXPORT int fmDisconnect(void *handle);
EXPORT int fmGetSupportedFabricPartitions(void *handle, struct partition_list *list);
EXPORT int fmGetUnsupportedFabricPartitions(void *handle, struct unsupported_list *list);
EXPORT int fmGetNvlinkFailedDevices(void *handle, struct failed_devices *failed);
EXPORT int fmActivateFabricPartition(void *handle, uint32_t id);
EXPORT int fmDeactivateFabricPartition(void *handle, uint32_t id);
EXPORT int fmActivateFabricPartitionWithVFs(void *handle, uint32_t id, const struct pci_device *vfs, uint32_t count);
EXPORT int fmSetActivatedFabricPartitions(void *handle, const struct activated_list *list);

/* Ours alone, and always 1: tells this library from NVIDIA's. */
EXPORT int fmctlSimulated(void);

#define VERSION(type, number) ((uint32_t)sizeof(struct type) | (uint32_t)(number) << 24)
#define CONNECT_V1 VERSION(connect_v1, 1)
#define CONNECT_V2 VERSION(connect_v2, 2)
#define LIST VERSION(partition_list, 1)
#define ACTIVATED VERSION(activated_list, 1)
#define FAILED VERSION(failed_devices, 1)
#define UNSUPPORTED VERSION(unsupported_list, 1)

#define ASSERT_SIZE(type, size) _Static_assert(sizeof(struct type) == (size), "size of " #type)
#define ASSERT_AT(type, member, at) _Static_assert(offsetof(struct type, member) == (at), #type "." #member)

ASSERT_SIZE(connect_v1, 268);
ASSERT_AT(connect_v1, address, 4);
ASSERT_AT(connect_v1, timeout_ms, 260);
ASSERT_AT(connect_v1, is_unix, 264);
ASSERT_SIZE(connect_v2, 272);
ASSERT_AT(connect_v2, type, 268);
ASSERT_SIZE(pci_device, 16);
ASSERT_SIZE(gpu, 128);
ASSERT_AT(gpu, uuid, 4);
ASSERT_AT(gpu, pci_bus_id, 84);
ASSERT_AT(gpu, links, 116);
ASSERT_AT(gpu, max_links, 120);
ASSERT_AT(gpu, line_rate, 124);
ASSERT_SIZE(partition, 2060);
ASSERT_AT(partition, active, 4);
ASSERT_AT(partition, gpu_count, 8);
ASSERT_AT(partition, gpus, 12);
ASSERT_SIZE(partition_list, 131852);
ASSERT_AT(partition_list, count, 4);
ASSERT_AT(partition_list, max_count, 8);
ASSERT_AT(partition_list, partitions, 12);
ASSERT_SIZE(activated_list, 264);
ASSERT_AT(activated_list, count, 4);
ASSERT_AT(activated_list, ids, 8);
ASSERT_SIZE(failed_device, 372);
ASSERT_AT(failed_device, pci_bus_id, 80);
ASSERT_AT(failed_device, port_count, 112);
ASSERT_AT(failed_device, ports, 116);
ASSERT_SIZE(failed_devices, 10428);
ASSERT_AT(failed_devices, gpu_count, 4);
ASSERT_AT(failed_devices, switch_count, 8);
ASSERT_AT(failed_devices, gpus, 12);
ASSERT_AT(failed_devices, switches, 5964);
ASSERT_SIZE(unsupported_partition, 72);
ASSERT_AT(unsupported_partition, gpu_count, 4);
ASSERT_AT(unsupported_partition, gpus, 8);
ASSERT_SIZE(unsupported_list, 4616);
ASSERT_AT(unsupported_list, count, 4);
ASSERT_AT(unsupported_list, partitions, 8);
_Static_assert(CONNECT_V1 == 0x0100010C, "version of connect_v1");
_Static_assert(CONNECT_V2 == 0x02000110, "version of connect_v2");
_Static_assert(LIST == 0x0102030C, "version of partition_list");
_Static_assert(ACTIVATED == 0x01000108, "version of activated_list");
_Static_assert(FAILED == 0x010028BC, "version of failed_devices");
_Static_assert(UNSUPPORTED == 0x01001208, "version of unsupported_list");
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little-endian, and copied as it is");

#endif
