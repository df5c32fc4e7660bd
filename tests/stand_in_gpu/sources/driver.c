// The driver, libcuda: what torch and triton ask it. Everything else of it is a generated function that returns 0.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

#include "counts.h"

EXPORT int cuDriverGetVersion(int* version) { return *version = CUDA_VERSION_OF_THE_HEADERS, 0; }
EXPORT int cuDeviceGetCount(int* count) { return *count = 1, 0; }
EXPORT int cuDeviceGet(int* device, int ordinal) { return *device = ordinal, 0; }
EXPORT int cuDeviceGetName(char* name, int size, int device) {
    return snprintf(name, (size_t)size, "%s", stand_in_name()), 0;
}
EXPORT int cuCtxGetDevice(int* device) { return *device = 0, 0; }
EXPORT int cuCtxGetCurrent(void** context) { return *context = (void*)16, 0; }
EXPORT int cuDevicePrimaryCtxGetState(int device, unsigned* flags, int* active) {
    if (flags) *flags = 0;
    if (active) *active = 1;
    return 0;
}
EXPORT int cuGetErrorString(int error, const char** text) { return *text = "an error of the stand-in GPU", 0; }
EXPORT int cuPointerGetAttribute(void* value, int which, unsigned long long place) {
    if (value) *(int*)value = 0;  // on device 0
    return 0;
}

// numbers of CUdevice_attribute, which cuda.h fixes
EXPORT int cuDeviceGetAttribute(int* value, int which, int device) {
    switch (which) {
        case 8: *value = 49152; break;                                            // shared memory a block
        case 10: *value = 32; break;                                              // warp
        case 12: case 82: *value = 65536; break;                                  // registers
        case 13: *value = 1410000; break;                                         // clock, kHz
        case 16: *value = stand_in_multiprocessors(); break;
        case 36: *value = 1593000; break;                                         // memory clock, kHz
        case 37: *value = 5120; break;                                            // memory bus, bits
        case 39: *value = 2048; break;                                            // threads a multiprocessor
        case 75: *value = stand_in_capability(); break;
        case 76: *value = 0; break;                                               // minor
        case 81: *value = stand_in_capability() == 8 ? 167936 : 233472; break;    // shared memory a multiprocessor
        case 97: *value = stand_in_capability() == 8 ? 166912 : 232448; break;    // ... a block may ask for
        default: *value = 1024;
    }
    return 0;
}
EXPORT int cuFuncGetAttribute(int* value, int which, void* function) {
    return *value = which == 0 ? 1024 : 0, 0;  // 0: threads a block
}
EXPORT int cuModuleLoadData(void** module, const void* image) { return *module = (void*)16, 0; }
EXPORT int cuModuleGetFunction(void** function, void* module, const char* name) { return *function = (void*)16, 0; }
EXPORT int cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks) { return *blocks = 2, 0; }
EXPORT int cuLaunchKernel() { return stand_in_count(COUNT_kernels), 0; }
EXPORT int cuLaunchKernelEx() { return stand_in_count(COUNT_kernels), 0; }
EXPORT int cuLaunchCooperativeKernel() { return stand_in_count(COUNT_kernels), 0; }

static int nothing(void) { return 0; }
EXPORT int cuGetProcAddress_v2(const char* name, void** function, int version, unsigned long long flags, int* found) {
    static const char* const suffixes[] = {"", "_v2", "_v3", "_v4"};
    char whole[256];
    *function = NULL;
    for (int at = 0; at < 4 && !*function; at++) {
        snprintf(whole, sizeof whole, "%s%s", name, suffixes[at]);
        *function = dlsym(RTLD_DEFAULT, whole);
    }
    if (!*function) *function = (void*)nothing;
    if (found) *found = 0;
    return 0;
}
EXPORT int cuGetProcAddress(const char* name, void** function, int version, unsigned long long flags) {
    return cuGetProcAddress_v2(name, function, version, flags, NULL);
}
