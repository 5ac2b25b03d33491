// Rows of log-softmax: log-sum-exp, selected log-prob, entropy and softmax - onehot, one pass over memory for the
// numbers and one more to write the matrix.

#include <cmath>
#include <stdexcept>
#include <utility>

#include "bf16.h"
#include "native.h"

namespace vdengine {
namespace {

using RowFunction = void (*)(const RowsArgs&, int64_t);

#define VD_KERNEL "rows_kernel.inl"
#include "each_isa.inl"

RowFunction choose([[maybe_unused]] const std::string& simd, DType logits, DType p) {
#if VD_X86
    if (simd == "avx512") return avx512::choose(logits, p);
    if (simd == "avx2") return avx2::choose(logits, p);
#endif
    return baseline::choose(logits, p);
}

}  // namespace

std::vector<std::string> simd_levels() {
    std::vector<std::string> levels;
#if VD_X86
    __builtin_cpu_init();
    const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        levels.push_back("avx512");
    if (has_avx2) levels.push_back("avx2");
#endif
    levels.push_back("baseline");
    return levels;
}

std::string resolve_simd(const std::string& simd) {
    const std::vector<std::string> levels = simd_levels();
    if (simd == "auto") return levels.front();
    for (const std::string& level : levels)
        if (level == simd) return level;
    throw std::invalid_argument("simd level '" + simd + "' does not exist on this machine");
}

void log_softmax_rows(const RowsArgs& args, int threads, const std::string& simd) {
    if (args.n < 0 || args.v < 1) throw std::invalid_argument("n must be >= 0 and v >= 1");
    if (!(args.inv_temperature >= 1e-30 && args.inv_temperature <= 1e30))
        throw std::invalid_argument("inv_temperature must be between 1e-30 and 1e30, got " +
                                    std::to_string(args.inv_temperature));
    if (args.n > 1 && (args.row_stride < args.v || (args.p && args.p_row_stride < args.v)))
        throw std::invalid_argument("a row stride is smaller than v = " + std::to_string(args.v));
    if (args.p == args.logits && args.p && (args.p_dtype != args.logits_dtype || args.p_row_stride != args.row_stride))
        throw std::invalid_argument("P may replace the logits only with the same dtype and row stride");
    for (int64_t i = 0; i < args.n; ++i)
        if (args.targets[i] < 0 || args.targets[i] >= args.v)
            throw std::invalid_argument("targets[" + std::to_string(i) + "] is " + std::to_string(args.targets[i]) +
                                        ", outside 0.." + std::to_string(args.v - 1) + " (V = " +
                                        std::to_string(args.v) + ")");

    const RowFunction row = choose(resolve_simd(simd), args.logits_dtype, args.p_dtype);
    [[maybe_unused]] const int num_threads = resolve_threads(threads);
#pragma omp parallel for schedule(static) num_threads(num_threads) if (args.n > 1 && num_threads > 1)
    for (int64_t i = 0; i < args.n; ++i) row(args, i);
}

}  // namespace vdengine
