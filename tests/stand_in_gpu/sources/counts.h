// What is counted. The names are what `counters.py` reads them by.
#ifndef STAND_IN_COUNTS_H
#define STAND_IN_COUNTS_H
#define STAND_IN_COUNTS(X)                                                                                  \
    X(kernels)           /* launches of kernels, of torch and of triton; matrix products and convolutions apart */ \
    X(matrix_products)   /* cuBLAS and cuBLASLt */                                                          \
    X(convolutions)      /* cuDNN */                                                                        \
    X(collectives)       /* NCCL */                                                                         \
    X(memsets)                                                                                              \
    X(copies_on_device)                                                                                     \
    X(copies_in_pinned)                                                                                     \
    X(copies_in_pageable)                                                                                   \
    X(large_copies_in_pageable) /* of more than 64 KiB: smaller ones go through the driver's own buffer */  \
    X(bytes_in)                                                                                             \
    X(copies_out_pinned)                                                                                    \
    X(copies_out_pageable)                                                                                  \
    X(bytes_out)                                                                                            \
    X(stream_syncs)                                                                                         \
    X(device_syncs)                                                                                         \
    X(event_syncs)                                                                                          \
    X(stream_waits)                                                                                         \
    X(allocations)
#ifdef __cplusplus
extern "C" {
#endif
#define X(name) COUNT_##name,
enum { STAND_IN_COUNTS(X) COUNTS };
#undef X
#define EXPORT __attribute__((visibility("default")))
EXPORT void stand_in_count(int which);
int stand_in_capability(void);      // major: 8, 9, 10
const char* stand_in_name(void);    // of the card
int stand_in_multiprocessors(void);
#ifdef __cplusplus
}
#endif
#endif
