// Picks the set of kernels for this processor, as ggml does for its own.

#include "llama-deltamem-kernels.h"

extern const llama_deltamem_kernels llama_deltamem_kernels_base;
#ifdef DELTAMEM_HAVE_X86_KERNELS
extern const llama_deltamem_kernels llama_deltamem_kernels_avx2;
extern const llama_deltamem_kernels llama_deltamem_kernels_avx512;
#endif

static const llama_deltamem_kernels & llama_deltamem_kernels_pick() {
#ifdef DELTAMEM_HAVE_X86_KERNELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq")) {
        return llama_deltamem_kernels_avx512;
    }
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        return llama_deltamem_kernels_avx2;
    }
#endif
    return llama_deltamem_kernels_base;
}

const llama_deltamem_kernels & llama_deltamem_kernels_get() {
    static const llama_deltamem_kernels & picked = llama_deltamem_kernels_pick();
    return picked;
}
