// The CUDA runtime: memory is the host's, kernels do nothing, and what a program asks of its GPU is counted.
//
// Real: which memory is the device's, pinned or pageable; that copies move bytes (on the device up to 1 MiB); order of calls.
// Not real: streams (everything happens at once, in the caller's thread), events, kernels, graphs, errors.
#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "counts.h"

#define API extern "C" EXPORT cudaError_t CUDARTAPI
// a call without an effect here; the parameters need no names
#define NOTHING(name, ...) \
    API name(__VA_ARGS__) { return cudaSuccess; }

// ---- counts ----------------------------------------------------------------------------------------------------

static std::atomic<long> counts[COUNTS];
extern "C" EXPORT void stand_in_count(int which) { counts[which]++; }
extern "C" EXPORT long stand_in_counted(int which) { return counts[which]; }
extern "C" EXPORT void stand_in_reset() {
    for (auto& count : counts) count = 0;
}
extern "C" EXPORT const char* stand_in_names() {
#define X(name) #name " "
    return STAND_IN_COUNTS(X);
#undef X
}

// ---- the card --------------------------------------------------------------------------------------------------

static long setting(const char* name, long otherwise) {
    const char* given = getenv(name);
    return given ? atol(given) : otherwise;
}
static const size_t SMALL = 4 << 20, COPIED = 1 << 20, CONTEXT_BYTES = (size_t)600 << 20;
static int device_count() {
    static int count = (int)setting("STAND_IN_DEVICES", 1);
    return count;
}
static size_t total_bytes() {
    static size_t bytes = (size_t)setting("STAND_IN_GIB", 80) << 30;
    return bytes;
}
int stand_in_capability() {
    static int major = (int)setting("STAND_IN_MAJOR", 8);
    return major;
}
const char* stand_in_name() {
    return stand_in_capability() == 8   ? "NVIDIA A100-SXM4-80GB"
           : stand_in_capability() == 9 ? "NVIDIA H100 80GB HBM3"
                                        : "NVIDIA B200";
}
int stand_in_multiprocessors() {
    return stand_in_capability() == 8 ? 108 : stand_in_capability() == 9 ? 132 : 148;
}
static size_t shared_bytes() { return stand_in_capability() == 8 ? 166912 : 232448; }
static thread_local int current = 0;

API cudaGetDeviceCount(int* count) { return *count = device_count(), cudaSuccess; }
API cudaGetDevice(int* device) { return *device = current, cudaSuccess; }
API cudaSetDevice(int device) { return current = device, cudaSuccess; }
API cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 1, cudaSuccess; }
NOTHING(cudaDeviceEnablePeerAccess, int, unsigned)
API cudaDriverGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }
API cudaRuntimeGetVersion(int* version) { return *version = CUDART_VERSION, cudaSuccess; }

// CUDA 12's header makes this cudaGetDeviceProperties_v2
API cudaGetDeviceProperties(cudaDeviceProp* card, int device) {
    memset(card, 0, sizeof *card);
    strcpy(card->name, stand_in_name());
    memcpy(&card->uuid, "stand-in GPU   0", 16);
    ((char*)&card->uuid)[15] = (char)('0' + device);
    card->major = stand_in_capability();
    card->totalGlobalMem = total_bytes();
    card->multiProcessorCount = stand_in_multiprocessors();
    card->maxThreadsPerBlock = card->maxThreadsDim[0] = card->maxThreadsDim[1] = 1024;
    card->maxThreadsDim[2] = 64;
    card->maxThreadsPerMultiProcessor = 2048;
    card->maxBlocksPerMultiProcessor = 32;
    card->warpSize = 32;
    card->sharedMemPerBlock = 49152;
    card->sharedMemPerBlockOptin = shared_bytes();
    card->sharedMemPerMultiprocessor = shared_bytes() + 1024;
    card->regsPerBlock = card->regsPerMultiprocessor = 65536;
    card->maxGridSize[0] = 2147483647;
    card->maxGridSize[1] = card->maxGridSize[2] = 65535;
    card->l2CacheSize = 50 << 20;
    card->memoryBusWidth = 5120;
    card->textureAlignment = 512;
    card->unifiedAddressing = card->managedMemory = 1;
    return cudaSuccess;
}

API cudaDeviceGetAttribute(int* value, cudaDeviceAttr which, int device) {
    cudaDeviceProp card;
    cudaGetDeviceProperties(&card, device);
    switch (which) {
        case cudaDevAttrComputeCapabilityMajor: *value = card.major; break;
        case cudaDevAttrMultiProcessorCount: *value = card.multiProcessorCount; break;
        case cudaDevAttrMaxThreadsPerBlock: *value = card.maxThreadsPerBlock; break;
        case cudaDevAttrMaxThreadsPerMultiProcessor: *value = card.maxThreadsPerMultiProcessor; break;
        case cudaDevAttrWarpSize: *value = card.warpSize; break;
        case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)card.sharedMemPerBlock; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)card.sharedMemPerBlockOptin; break;
        case cudaDevAttrMaxGridDimX: *value = card.maxGridSize[0]; break;
        case cudaDevAttrMaxGridDimY:
        case cudaDevAttrMaxGridDimZ: *value = card.maxGridSize[1]; break;
        case cudaDevAttrL2CacheSize: *value = card.l2CacheSize; break;
        default: *value = 0;
    }
    return cudaSuccess;
}
API cudaDeviceGetPCIBusId(char* name, int size, int device) {
    return snprintf(name, (size_t)size, "0000:%02d:00.0", device), cudaSuccess;
}
API cudaDeviceGetStreamPriorityRange(int* least, int* greatest) { return *least = 0, *greatest = -5, cudaSuccess; }

// ---- memory ----------------------------------------------------------------------------------------------------

static std::mutex lock;
static std::map<char*, size_t> on_device, pinned;
static size_t used = 0;

static bool within(const std::map<char*, size_t>& blocks, const void* place) {
    std::lock_guard<std::mutex> held(lock);
    auto block = blocks.upper_bound((char*)place);
    if (block == blocks.begin()) return false;
    --block;
    return (char*)place < block->first + block->second;
}

// large blocks are mapped without backing: of a network that fills a GPU the host keeps what is written only
static void* fresh(size_t bytes, int flags) {
    void* place = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return place == MAP_FAILED ? nullptr : place;
}

API cudaMalloc(void** place, size_t bytes) {
    std::lock_guard<std::mutex> held(lock);
    *place = nullptr;
    if (used + bytes > total_bytes() - ((size_t)1 << 30)) return cudaErrorMemoryAllocation;
    if (bytes >= SMALL) {
        *place = fresh(bytes, MAP_NORESERVE);
    } else if (posix_memalign(place, 512, bytes ? bytes : 512) == 0) {
        memset(*place, 0, bytes);
    }
    if (!*place) return cudaErrorMemoryAllocation;
    on_device[(char*)*place] = bytes;
    used += bytes;
    stand_in_count(COUNT_allocations);
    return cudaSuccess;
}
API cudaFree(void* place) {
    std::lock_guard<std::mutex> held(lock);
    auto block = on_device.find((char*)place);
    if (block == on_device.end()) return cudaSuccess;
    if (block->second < SMALL)
        free(place);
    else
        munmap(place, block->second);
    used -= block->second;
    on_device.erase(block);
    return cudaSuccess;
}
API cudaMallocAsync(void** place, size_t bytes, cudaStream_t) { return cudaMalloc(place, bytes); }
API cudaFreeAsync(void* place, cudaStream_t) { return cudaFree(place); }
API cudaMemGetInfo(size_t* unused, size_t* total) {
    std::lock_guard<std::mutex> held(lock);
    return *total = total_bytes(), *unused = total_bytes() - used - CONTEXT_BYTES, cudaSuccess;
}
API cudaHostAlloc(void** place, size_t bytes, unsigned) {
    *place = fresh(bytes, 0);
    std::lock_guard<std::mutex> held(lock);
    if (!*place) return cudaErrorMemoryAllocation;
    return pinned[(char*)*place] = bytes, cudaSuccess;
}
API cudaFreeHost(void* place) {
    std::lock_guard<std::mutex> held(lock);
    auto block = pinned.find((char*)place);
    if (block == pinned.end()) return cudaSuccess;
    munmap(place, block->second);
    return pinned.erase(block), cudaSuccess;
}
API cudaHostRegister(void* place, size_t bytes, unsigned) {
    std::lock_guard<std::mutex> held(lock);
    return pinned[(char*)place] = bytes, cudaSuccess;
}
API cudaHostUnregister(void* place) {
    std::lock_guard<std::mutex> held(lock);
    return pinned.erase((char*)place), cudaSuccess;
}
API cudaPointerGetAttributes(cudaPointerAttributes* found, const void* place) {
    memset(found, 0, sizeof *found);
    found->type = within(on_device, place) ? cudaMemoryTypeDevice
                  : within(pinned, place)  ? cudaMemoryTypeHost
                                           : cudaMemoryTypeUnregistered;
    found->devicePointer = found->hostPointer = (void*)place;
    return cudaSuccess;
}

// STAND_IN_TRACE=1: a line for every copy and every wait, to find out who it belongs to
static void trace(const char* what, size_t bytes) {
    static bool on = setting("STAND_IN_TRACE", 0) != 0;
    if (on) fprintf(stderr, "[stand-in GPU] %s %zu\n", what, bytes);
}

static cudaError_t copied(void* to, const void* from, size_t bytes) {
    if (!bytes) return cudaSuccess;  // of an empty tensor
    bool in = within(on_device, to), out = within(on_device, from);
    if (in && out) {
        stand_in_count(COUNT_copies_on_device);
    } else if (in) {
        bool fast = within(pinned, from);
        stand_in_count(fast ? COUNT_copies_in_pinned : COUNT_copies_in_pageable);
        if (!fast && bytes > 65536) stand_in_count(COUNT_large_copies_in_pageable);
        counts[COUNT_bytes_in] += (long)bytes;
        trace(fast ? "copy in, pinned" : "copy in, pageable", bytes);
    } else if (out) {
        bool fast = within(pinned, to);
        stand_in_count(fast ? COUNT_copies_out_pinned : COUNT_copies_out_pageable);
        counts[COUNT_bytes_out] += (long)bytes;
        trace(fast ? "copy out, pinned" : "copy out, pageable", bytes);
    }
    if (!(in && out) || bytes < COPIED) memcpy(to, from, bytes);
    // A single number that would be 0 is the integer 1: as a count it is not none, so that nonzero() finds one place and
    // a validation one image; as a float it is next to 0 (1.4e-45).
    if (out && !in && bytes == sizeof(int) && *(int*)to == 0) *(int*)to = 1;
    return cudaSuccess;
}
API cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) { return copied(to, from, bytes); }
API cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind, cudaStream_t) {
    return copied(to, from, bytes);
}
API cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes, cudaStream_t) {
    return copied(to, from, bytes);
}
API cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width, size_t height,
                      cudaMemcpyKind, cudaStream_t) {
    for (size_t row = 0; row < height; row++)
        memcpy((char*)to + row * to_pitch, (const char*)from + row * from_pitch, width);
    return stand_in_count(COUNT_copies_on_device), cudaSuccess;
}
NOTHING(cudaMemcpyToSymbol, const void*, const void*, size_t, size_t, cudaMemcpyKind)
API cudaMemsetAsync(void* place, int value, size_t bytes, cudaStream_t) {
    stand_in_count(COUNT_memsets);
    if (bytes < SMALL) memset(place, value, bytes);
    return cudaSuccess;
}
API cudaMemset(void* place, int value, size_t bytes) { return cudaMemsetAsync(place, value, bytes, nullptr); }

// ---- streams and events ----------------------------------------------------------------------------------------

template <typename Handle>
static cudaError_t handle(Handle* made) {
    static std::atomic<long> next{0x1000};
    return *made = (Handle)(next += 16), cudaSuccess;
}
API cudaStreamCreate(cudaStream_t* made) { return handle(made); }
API cudaStreamCreateWithFlags(cudaStream_t* made, unsigned) { return handle(made); }
API cudaStreamCreateWithPriority(cudaStream_t* made, unsigned, int) { return handle(made); }
API cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
API cudaStreamWaitEvent(cudaStream_t, cudaEvent_t, unsigned) {
    return stand_in_count(COUNT_stream_waits), cudaSuccess;
}
API cudaStreamSynchronize(cudaStream_t) {
    return stand_in_count(COUNT_stream_syncs), trace("wait for a stream", 0), cudaSuccess;
}
API cudaDeviceSynchronize() {
    return stand_in_count(COUNT_device_syncs), trace("wait for the device", 0), cudaSuccess;
}
API cudaEventSynchronize(cudaEvent_t) {
    return stand_in_count(COUNT_event_syncs), trace("wait for an event", 0), cudaSuccess;
}
API cudaEventCreate(cudaEvent_t* made) { return handle(made); }
API cudaEventCreateWithFlags(cudaEvent_t* made, unsigned) { return handle(made); }
API cudaEventElapsedTime(float* ms, cudaEvent_t, cudaEvent_t) { return *ms = 1, cudaSuccess; }
API cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t call, void* with, unsigned) {
    return call(stream, cudaSuccess, with), cudaSuccess;
}
API cudaLaunchHostFunc(cudaStream_t, cudaHostFn_t call, void* with) { return call(with), cudaSuccess; }

// graphs are never captured; the parameters differ between CUDA 12 (v2) and 13, the first ones do not
API cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
    return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
#undef cudaStreamGetCaptureInfo
#if CUDART_VERSION >= 13000
API cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id, cudaGraph_t* graph,
                             const cudaGraphNode_t** nodes, const cudaGraphEdgeData** edges, size_t* count) {
    if (edges) *edges = nullptr;
#else
API cudaStreamGetCaptureInfo_v2(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* id,
                                cudaGraph_t* graph, const cudaGraphNode_t** nodes, size_t* count) {
#endif
    *status = cudaStreamCaptureStatusNone;
    if (id) *id = 0;
    if (graph) *graph = nullptr;
    if (nodes) *nodes = nullptr;
    if (count) *count = 0;
    return cudaSuccess;
}

// ---- kernels ---------------------------------------------------------------------------------------------------

static cudaError_t launched() { return stand_in_count(COUNT_kernels), cudaSuccess; }
API cudaLaunchKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) { return launched(); }
API cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void*, void**) { return launched(); }
API cudaLaunchCooperativeKernel(const void*, dim3, dim3, void**, size_t, cudaStream_t) { return launched(); }
API __cudaLaunchKernel(void*, dim3, dim3, void**, size_t, cudaStream_t) { return launched(); }
API __cudaGetKernel(void** kernel, const void* function) { return *kernel = (void*)function, cudaSuccess; }
API cudaFuncGetAttributes(cudaFuncAttributes* found, const void*) {
    memset(found, 0, sizeof *found);
    found->maxThreadsPerBlock = 1024;
    found->numRegs = 32;
    found->ptxVersion = found->binaryVersion = 10 * stand_in_capability();
    return cudaSuccess;
}
API cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int, size_t) {
    return *blocks = 2, cudaSuccess;
}
API cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks, const void*, int, size_t, unsigned) {
    return *blocks = 2, cudaSuccess;
}
API cudaGetSymbolAddress(void** place, const void*) {
    static char symbol[4096];
    return *place = symbol, cudaSuccess;
}

// what nvcc writes around `kernel<<<...>>>` and around each file's kernels
static thread_local struct {
    dim3 grid, block;
    size_t shared;
    void* stream;
} configuration;
extern "C" EXPORT unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared, void* stream) {
    configuration = {grid, block, shared, stream};
    return 0;
}
API __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared, void* stream) {
    *grid = configuration.grid, *block = configuration.block, *shared = configuration.shared;
    *(void**)stream = configuration.stream;
    return cudaSuccess;
}
extern "C" EXPORT void** __cudaRegisterFatBinary(void*) {
    static void* handles[4];
    return handles;
}

// ---- errors and the driver's functions --------------------------------------------------------------------------

extern "C" EXPORT const char* CUDARTAPI cudaGetErrorName(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "cudaErrorMemoryAllocation" : "cudaError";
}
extern "C" EXPORT const char* CUDARTAPI cudaGetErrorString(cudaError_t error) {
    return error == cudaErrorMemoryAllocation ? "out of memory" : "an error of the stand-in GPU";
}
extern "C" int cuGetProcAddress_v2(const char*, void**, int, unsigned long long, int*);
API cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long,
                                     cudaDriverEntryPointQueryResult* found) {
    if (found) *found = cudaDriverEntryPointSuccess;
    return cuGetProcAddress_v2(name, function, 0, 0, nullptr), cudaSuccess;
}
#if CUDART_VERSION < 13000
API cudaGetDriverEntryPoint(const char* name, void** function, unsigned long long,
                            cudaDriverEntryPointQueryResult* found) {
    return cudaGetDriverEntryPointByVersion(name, function, 0, 0, found);
}
#endif
