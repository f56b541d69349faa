/* SPDX-License-Identifier: Apache-2.0 */
/* Reaching the server: addresses as the SDK takes them, and waiting with deadlines. */
#ifndef FMCTL_NVFM_DIAL_H
#define FMCTL_NVFM_DIAL_H

#include "nvfm_abi.h"

#include <stdbool.h>
#include <stdint.h>

/* The time, in milliseconds of the monotonic clock; all deadlines are in these. */
int64_t now_ms(void);

/* Waits until `fd` is ready for `events` or the deadline has passed; whether it is ready. */
bool wait_for(int fd, short events, int64_t deadline);

/* Tries until somebody listens there or the deadline has passed; a connected socket that does not block, or -1. */
int dial(enum address_type type, const char address[MAX_TEXT], int64_t deadline);

#endif
