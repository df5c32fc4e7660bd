// What the CUDA headers ask of "crt/host_defines.h", which no package that torch needs brings, for gcc on a host.
#ifndef STAND_IN_HOST_DEFINES_H
#define STAND_IN_HOST_DEFINES_H
#define CUDARTAPI
#define CUDARTAPI_CDECL
#define __align__(n) __attribute__((aligned(n)))
#define __builtin_align__(n) __align__(n)
#define __location__(a)
#define __host__
#define __device__
#define __global__
#define __shared__
#define __constant__
#define __managed__
#define __device_builtin__
#define __device_builtin_texture_type__
#define __device_builtin_surface_type__
#define __cudart_builtin__
#define __specialization_static
#define __forceinline__ __inline__ __attribute__((always_inline))
#endif
