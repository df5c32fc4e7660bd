// cuBLAS, cuDNN and NCCL: handles, versions, and the calls that have results; the others are generated and return 0.
#include <stdlib.h>
#include <string.h>

#include "counts.h"

#define MAKES_A_HANDLE(name) \
    EXPORT int name(void** made) { return *made = calloc(1, 4096), 0; }

// ---- cuBLAS ----------------------------------------------------------------------------------------------------

MAKES_A_HANDLE(cublasCreate_v2)
MAKES_A_HANDLE(cublasLtMatmulDescCreate)
MAKES_A_HANDLE(cublasLtMatmulPreferenceCreate)
MAKES_A_HANDLE(cublasLtMatrixLayoutCreate)
EXPORT int cublasGetMathMode(void* handle, int* mode) { return *mode = 0, 0; }
EXPORT int cublasGetPointerMode_v2(void* handle, int* mode) { return *mode = 0, 0; }
EXPORT size_t cublasLtGetVersion(void) { return 130100; }
// one algorithm, whose state is 0 and which needs no workspace: cublasLtMatmulHeuristicResult_t, 96 bytes
EXPORT int cublasLtMatmulAlgoGetHeuristic(void* handle, void* product, void* a, void* b, void* c, void* d,
                                          void* preference, int wanted, char* results, int* found) {
    memset(results, 0, 96);
    return *found = 1, 0;
}

// ---- cuDNN -----------------------------------------------------------------------------------------------------

MAKES_A_HANDLE(cudnnCreate)
EXPORT size_t cudnnGetVersion(void) { return CUDNN_VERSION_OF_THE_HEADERS; }
EXPORT size_t cudnnGetCudartVersion(void) { return CUDA_VERSION_OF_THE_HEADERS; }
EXPORT int cudnnGetProperty(int which, int* value) {
    int version = CUDNN_VERSION_OF_THE_HEADERS;
    return *value = which == 0 ? version / 10000 : which == 1 ? version / 100 % 100 : version % 100, 0;
}
EXPORT const char* cudnnGetErrorString(int status) { return status ? "not supported by the stand-in GPU" : "success"; }
EXPORT void cudnnGetLastErrorString(char* text, size_t size) {
    if (size) strncpy(text, " (not supported by the stand-in GPU)", size - 1), text[size - 1] = 0;
}

// one algorithm, number 0; the records of several (cudnnConvolutionFwdAlgoPerf_t, ...) are 48 bytes or less
#define FINDS(name)                                                                                               \
    EXPORT int name(void* handle, void* a, void* A, void* b, void* B, void* c, void* d, void* D, int wanted,      \
                    int* found, char* results) {                                                                  \
        return memset(results, 0, 48), *found = 1, 0;                                                             \
    }
#define LISTS(name)                                                                                               \
    EXPORT int name(void* handle, void* a, void* b, void* c, void* d, int wanted, int* found, char* results) {    \
        return memset(results, 0, 48), *found = 1, 0;                                                             \
    }
#define SIZES(name)                                                                                               \
    EXPORT int name(void* handle, void* a, void* b, void* c, void* d, int algorithm, size_t* bytes) {             \
        return *bytes = 1024, 0;                                                                                  \
    }
FINDS(cudnnFindConvolutionForwardAlgorithmEx)
FINDS(cudnnFindConvolutionBackwardDataAlgorithmEx)
FINDS(cudnnFindConvolutionBackwardFilterAlgorithmEx)
LISTS(cudnnGetConvolutionForwardAlgorithm_v7)
LISTS(cudnnGetConvolutionBackwardDataAlgorithm_v7)
LISTS(cudnnGetConvolutionBackwardFilterAlgorithm_v7)
SIZES(cudnnGetConvolutionForwardWorkspaceSize)
SIZES(cudnnGetConvolutionBackwardDataWorkspaceSize)
SIZES(cudnnGetConvolutionBackwardFilterWorkspaceSize)

// Convolutions are planned from descriptors, which are opaque. Attention is too, as matrix products, softmax and random
// numbers in one graph or as one operation: these are refused, because their plans are read back and nothing is in them.
enum { NOT_SUPPORTED = 3000, MATMUL = 18, OPERATION_MATMUL = 19, OPERATION_REDUCTION = 22, OPERATION_RNG = 33,
       OPERATION_SDPA_FORWARD = 41, OPERATION_SDPA_BACKWARD = 43 };
EXPORT int cudnnBackendCreateDescriptor(int kind, void** made) {
    switch (kind) {
        case MATMUL: case OPERATION_MATMUL: case OPERATION_REDUCTION: case OPERATION_RNG:
        case OPERATION_SDPA_FORWARD: case OPERATION_SDPA_BACKWARD:
            return *made = NULL, NOT_SUPPORTED;
        default:
            return *made = calloc(1, 4096), 0;
    }
}
EXPORT int cudnnBackendDestroyDescriptor(void* descriptor) { return free(descriptor), 0; }
EXPORT int cudnnBackendExecute(void) { return stand_in_count(COUNT_convolutions), 0; }
// an integer is 0 (workspace, ...); the heuristics have one result
EXPORT int cudnnBackendGetAttribute(void* descriptor, int which, int type, long wanted, long* count, void* value) {
    enum { ENGINEHEUR_RESULTS = 202, TYPE_INT64 = 3 };
    int integer = type == TYPE_INT64 && wanted >= 1 && value;
    if (which != ENGINEHEUR_RESULTS && integer) *(long*)value = 0;
    if (count) *count = which == ENGINEHEUR_RESULTS || integer;
    return 0;
}

// ---- NCCL: a rank hears nothing of the others ------------------------------------------------------------------

MAKES_A_HANDLE(ncclCommInitRank)
MAKES_A_HANDLE(ncclCommInitRankConfig)
MAKES_A_HANDLE(ncclCommInitRankScalable)
EXPORT int ncclCommSplit(void* of, int color, int key, void** made) { return *made = calloc(1, 4096), 0; }
EXPORT int ncclGetUniqueId(char* id) { return memset(id, 7, 128), 0; }
EXPORT int ncclGetVersion(int* version) { return *version = 23007, 0; }
static int placed(const char* name, int otherwise) { return getenv(name) ? atoi(getenv(name)) : otherwise; }
EXPORT int ncclCommCount(void* communicator, int* count) { return *count = placed("WORLD_SIZE", 1), 0; }
EXPORT int ncclCommUserRank(void* communicator, int* rank) { return *rank = placed("RANK", 0), 0; }
EXPORT int ncclCommGetAsyncError(void* communicator, int* error) { return *error = 0, 0; }
EXPORT const char* ncclGetErrorString(int error) { return "an error of the stand-in GPU"; }
EXPORT const char* ncclGetLastError(void* communicator) { return ""; }
