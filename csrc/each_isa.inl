// Compiles the file VD_KERNEL once per instruction set this architecture has, in a namespace of that name. A function
// `f` of it is then called as the `f` of the best level (see simd_levels):
//
//     #define VD_KERNEL "some_kernel.inl"
//     #include "each_isa.inl"

#if defined(__x86_64__) || defined(__i386__)
#define VD_X86 1
namespace avx512 {
#define VD_TARGET __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")))
#define VD_LANES 16
#include "vector.inl"
#include VD_KERNEL
#undef VD_INLINE
#undef VD_LANES
#undef VD_TARGET
}  // namespace avx512
namespace avx2 {
#define VD_TARGET __attribute__((target("avx2,fma")))
#define VD_LANES 8
#include "vector.inl"
#include VD_KERNEL
#undef VD_INLINE
#undef VD_LANES
#undef VD_TARGET
}  // namespace avx2
#else
#define VD_X86 0
#endif

namespace baseline {  // SSE2 on x86-64, NEON on aarch64
#define VD_TARGET
#define VD_LANES 4
#include "vector.inl"
#include VD_KERNEL
#undef VD_INLINE
#undef VD_LANES
#undef VD_TARGET
}  // namespace baseline

#undef VD_KERNEL
