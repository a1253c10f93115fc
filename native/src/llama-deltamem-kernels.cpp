// One set of kernels, compiled for one instruction set: DELTAMEM_ISA names it (see native/CMakeLists.txt).
// Plain loops over fixed-width blocks that the compiler turns into vector code; no intrinsics.

#include "llama-deltamem-kernels.h"

#include "llama-deltamem.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#ifndef DELTAMEM_ISA
#define DELTAMEM_ISA base
#endif

#define DELTAMEM_CONCAT_(a, b) a##b
#define DELTAMEM_CONCAT(a, b)  DELTAMEM_CONCAT_(a, b)
#define DELTAMEM_STR_(a)       #a
#define DELTAMEM_STR(a)        DELTAMEM_STR_(a)

#if defined(__GNUC__)
#define DELTAMEM_INLINE inline __attribute__((always_inline))
#else
#define DELTAMEM_INLINE inline
#endif

namespace {

constexpr int64_t BLOCK = 32; // columns of a block: two registers of AVX-512, four of AVX2

DELTAMEM_INLINE float load(const float * w) { return *w; }

DELTAMEM_INLINE float load(const uint16_t * w) {
    const uint32_t bits = (uint32_t) *w << 16;
    float f;
    memcpy(&f, &bits, sizeof(f));
    return f;
}

// A block of NT tokens and n <= BLOCK columns. The weights of a row are read once for all tokens of the block.
template <int NT, typename T>
DELTAMEM_INLINE void accumulate_block(const T * w, int64_t stride, int64_t n_in, const float * x, int64_t x_stride,
        float * y, int64_t y_stride, int64_t n) {
    float acc[NT][BLOCK];
    for (int t = 0; t < NT; ++t) {
        for (int64_t c = 0; c < BLOCK; ++c) {
            acc[t][c] = 0.0f;
        }
    }
    for (int64_t i = 0; i < n_in; ++i) {
        const T * row = w + i*stride;
        for (int t = 0; t < NT; ++t) {
            const float xi = x[t*x_stride + i];
            for (int64_t c = 0; c < BLOCK; ++c) {
                acc[t][c] += xi*load(row + c);
            }
        }
    }
    for (int t = 0; t < NT; ++t) {
        for (int64_t c = 0; c < n; ++c) {
            y[t*y_stride + c] += acc[t][c];
        }
    }
}

template <typename T>
DELTAMEM_INLINE void accumulate_typed(const llama_deltamem_matrix & w, const T * data, const float * x, int64_t x_stride,
        float * y, int64_t y_stride, int64_t n_tokens, int64_t c0, int64_t c1) {
    // rows are padded to BLOCK, so a block may read past c1, never past the row
    for (int64_t c = c0; c < c1; c += BLOCK) {
        const int64_t n = std::min(BLOCK, c1 - c);
        int64_t t = 0;
        for (; t + 4 <= n_tokens; t += 4) {
            accumulate_block<4>(data + c, w.stride, w.n_in, x + t*x_stride, x_stride, y + t*y_stride + c, y_stride, n);
        }
        for (; t < n_tokens; ++t) {
            accumulate_block<1>(data + c, w.stride, w.n_in, x + t*x_stride, x_stride, y + t*y_stride + c, y_stride, n);
        }
    }
}

void accumulate(const llama_deltamem_matrix & w, const float * x, int64_t x_stride, float * y, int64_t y_stride,
        int64_t n_tokens, int64_t c0, int64_t c1) {
    if (w.bf16) {
        accumulate_typed(w, w.bf16, x, x_stride, y, y_stride, n_tokens, c0, c1);
    } else {
        accumulate_typed(w, w.f32, x, x_stride, y, y_stride, n_tokens, c0, c1);
    }
}

// exp by 2^n * p(f), f in [-ln2/2, ln2/2], relative error below 2e-7; branch-free so that it vectorizes
DELTAMEM_INLINE float exp_approx(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    const float n = (x*1.44269504088896341f + 12582912.0f) - 12582912.0f; // round to nearest
    const float f = (x - n*0.693145751953125f) - n*1.428606765330187e-6f;
    float p = 1.9875691500e-4f;
    p = p*f + 1.3981999507e-3f;
    p = p*f + 8.3334519073e-3f;
    p = p*f + 4.1665795894e-2f;
    p = p*f + 1.6666665459e-1f;
    p = p*f + 5.0000001201e-1f;
    p = p*f*f + f + 1.0f;
    const int32_t bits = ((int32_t) n + 127) << 23;
    float scale;
    memcpy(&scale, &bits, sizeof(scale));
    return p*scale;
}

DELTAMEM_INLINE float tanh_approx(float x) {
    // near zero 1 - 2/(e^2x + 1) cancels; small values matter because the l2 norm scales them up
    const float x2 = x*x;
    float s = -5.70498872745e-3f;
    s = s*x2 + 2.06390887954e-2f;
    s = s*x2 - 5.37397155531e-2f;
    s = s*x2 + 1.33314422036e-1f;
    s = s*x2 - 3.33332819422e-1f;
    s = s*x2*x + x;
    const float l = 1.0f - 2.0f/(exp_approx(2.0f*x) + 1.0f);
    return x2 < 0.390625f ? s : l;
}

void activate(const llama_deltamem_rule & rule, const float * gate_bias, float * p, int64_t p_stride, int64_t n_tokens) {
    const int n_read  = rule.n_read();
    const int n_gates = rule.n_gates();
    for (int64_t t = 0; t < n_tokens; ++t) {
        float * row   = p + t*p_stride;
        float * gates = row + 3*n_read;
        if (rule.normalize_qk) {
            for (int i = 0; i < 2*n_read; ++i) {
                row[i] = tanh_approx(row[i]);
            }
            for (int h = 0; h < 2*rule.n_heads; ++h) {
                float * v = row + h*rule.rank;
                float sum = 0.0f;
                for (int i = 0; i < rule.rank; ++i) {
                    sum += v[i]*v[i];
                }
                const float scale = 1.0f/std::max(std::sqrt(sum), 1e-6f);
                for (int i = 0; i < rule.rank; ++i) {
                    v[i] *= scale;
                }
            }
        }
        for (int i = 0; i < n_gates; ++i) {
            gates[i] = 1.0f/(1.0f + exp_approx(-(gates[i] + gate_bias[i])));
        }
    }
}

// R > 0: the rank, known to the compiler
template <int R>
DELTAMEM_INLINE void scan_rank(const llama_deltamem_rule & rule, const float * p, int64_t p_stride, const int32_t * slot,
        const uint8_t * write, int64_t n_tokens, float * states, float * reads, float * tmp) {
    const int r      = R > 0 ? R : rule.rank;
    const int n_read = rule.n_read();
    const int n_gate = rule.n_gate();

    float * st    = tmp;         // the state, transposed: st[j*r + i] = S[i, j], so that rows lie side by side
    float * read  = st + r*r;
    float * pred  = read + r;
    float * keep  = pred + r;
    float * delta = keep + r;

    for (int h = 0; h < rule.n_heads; ++h) {
        int32_t loaded = -1;
        const auto store = [&]() {
            float * s = states + ((int64_t) loaded*rule.n_heads + h)*r*r;
            for (int i = 0; i < r; ++i) {
                for (int j = 0; j < r; ++j) {
                    s[i*r + j] = st[j*r + i];
                }
            }
        };
        for (int64_t t = 0; t < n_tokens; ++t) {
            if (slot[t] != loaded) {
                if (loaded >= 0) {
                    store();
                }
                loaded = slot[t];
                const float * s = states + ((int64_t) loaded*rule.n_heads + h)*r*r;
                for (int i = 0; i < r; ++i) {
                    for (int j = 0; j < r; ++j) {
                        st[j*r + i] = s[i*r + j];
                    }
                }
            }

            const float * q = p + t*p_stride + h*r;
            const float * k = q + n_read;
            const float * v = k + n_read;

            for (int i = 0; i < r; ++i) {
                read[i] = 0.0f;
                pred[i] = 0.0f;
            }
            for (int j = 0; j < r; ++j) {
                for (int i = 0; i < r; ++i) {
                    read[i] += st[j*r + i]*q[j];
                    pred[i] += st[j*r + i]*k[j];
                }
            }
            memcpy(reads + t*n_read + h*r, read, r*sizeof(float)); // read before write, as published

            if (!write[t]) {
                continue;
            }

            const float * gates  = p + t*p_stride + 3*n_read;
            const float * beta   = gates + (rule.rankwise_gates ? h*r : h);
            const float * lambda = rule.has_lambda() ? beta + n_gate : nullptr;
            for (int i = 0; i < r; ++i) {
                const int   g = rule.rankwise_gates ? i : 0;
                const float b = beta[g];
                const float l = lambda ? lambda[g] : 1.0f - b;
                keep[i]  = rule.state_update == LLAMA_DELTAMEM_NO_LAMBDA ? 1.0f : l;
                const float erase = rule.state_update == LLAMA_DELTAMEM_LAMBDA_OUTSIDE ? l*b : b;
                delta[i] = b*v[i] - erase*pred[i];
            }
            for (int j = 0; j < r; ++j) {
                for (int i = 0; i < r; ++i) {
                    st[j*r + i] = keep[i]*st[j*r + i] + delta[i]*k[j];
                }
            }
        }
        if (loaded >= 0) {
            store();
        }
    }
}

void scan(const llama_deltamem_rule & rule, const float * p, int64_t p_stride, const int32_t * slot,
        const uint8_t * write, int64_t n_tokens, float * states, float * reads, float * tmp) {
    if (rule.rank == 8) { // the published rank; with the state in local memory it stays in registers
        float local[8*8 + 4*8];
        scan_rank<8>(rule, p, p_stride, slot, write, n_tokens, states, reads, local);
    } else {
        scan_rank<0>(rule, p, p_stride, slot, write, n_tokens, states, reads, tmp);
    }
}

} // namespace

extern const llama_deltamem_kernels DELTAMEM_CONCAT(llama_deltamem_kernels_, DELTAMEM_ISA);
const llama_deltamem_kernels DELTAMEM_CONCAT(llama_deltamem_kernels_, DELTAMEM_ISA) = {
    accumulate, activate, scan, DELTAMEM_STR(DELTAMEM_ISA),
};
