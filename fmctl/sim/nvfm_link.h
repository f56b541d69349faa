/* SPDX-License-Identifier: Apache-2.0 */
/* The connections that handles stand for, and one call over them. */
#ifndef FMCTL_NVFM_LINK_H
#define FMCTL_NVFM_LINK_H

#include "nvfm_dial.h"

#include <stddef.h>

struct request {
    uint32_t operation, argument;
    const void *payload;
    size_t size;
};

/* What is left to read of a reply; reading past its end makes it bad, and yields zeros. */
struct reader {
    const uint8_t *at;
    size_t left;
    bool bad;
};

typedef void decoder(struct reader *reply, void *into);

void take(struct reader *reader, void *into, size_t size);
uint32_t take_word(struct reader *reader);

/* The number of rows that follow; none, and a bad reply, where they are more than a structure holds. */
uint32_t take_rows(struct reader *reader, uint32_t most);

/* Between the two, handles can be opened; `link_stop` closes those that are left. */
int link_start(void);
int link_stop(void);
bool link_is_up(void);

int link_open(enum address_type type, const struct connect_v1 *params, void **handle);
int link_close(const void *handle);

/* Makes a call and waits for its reply; `decode`, where it is given, reads a successful one. */
int link_call(const void *handle, const struct request *request, decoder *decode, void *into);

#endif
