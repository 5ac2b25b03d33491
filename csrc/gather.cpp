// The backward of a gather: each output row is the sum of the gradient rows that used it, in ascending order, so
// the result does not depend on threads (that of an atomic scatter-add does).

#include <algorithm>
#include <stdexcept>

#include "bf16.h"
#include "native.h"

namespace vdengine {
namespace {

constexpr int64_t kColumns = 256;  // one tile's fp32 accumulator: 1 KiB, in the first-level cache

inline float widen(float x) { return x; }
inline float widen(uint16_t x) { return bf16_to_float(x); }
inline void narrow(float* out, float x) { *out = x; }
inline void narrow(uint16_t* out, float x) { *out = float_to_bf16(x); }

// Output rows [first, last), columns [column, column + columns).
template <typename S, typename O>
void sum_tile(const GatherArgs& a, int64_t first, int64_t last, int64_t column, int64_t columns) {
    const S* src = static_cast<const S*>(a.src) + column;
    O* out = static_cast<O*>(a.out) + column;
    float sum[kColumns];
    for (int64_t j = first; j < last; ++j) {
        for (int64_t c = 0; c < columns; ++c) sum[c] = 0;
        for (int64_t k = a.offsets[j]; k < a.offsets[j + 1]; ++k) {
            const S* source = src + a.order[k] * a.src_row_stride;
            for (int64_t c = 0; c < columns; ++c) sum[c] += widen(source[c]);
        }
        O* target = out + j * a.out_row_stride;
        for (int64_t c = 0; c < columns; ++c) narrow(target + c, sum[c]);
    }
}

// Cuts 0..m into runs of about equal work (rows read and written): a token id that a pack uses a thousand times
// must not make one thread's share a thousand times larger.
std::vector<int64_t> balanced_runs(const int64_t* offsets, int64_t m, int64_t runs) {
    const int64_t work = offsets[m] - offsets[0] + m;
    std::vector<int64_t> bounds{0};
    for (int64_t j = 0; j < m; ++j) {
        const int64_t done = offsets[j + 1] - offsets[0] + j + 1;
        if (done >= work * static_cast<int64_t>(bounds.size()) / runs || j + 1 == m) bounds.push_back(j + 1);
    }
    return bounds;
}

template <typename S, typename O>
void run(const GatherArgs& a, int threads) {
    const std::vector<int64_t> bounds = balanced_runs(a.offsets, a.m, threads == 1 ? 1 : threads * int64_t{8});
    const int64_t runs = static_cast<int64_t>(bounds.size()) - 1;
    const int64_t tiles = (a.width + kColumns - 1) / kColumns;
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int64_t r = 0; r < runs; ++r)
        for (int64_t t = 0; t < tiles; ++t)
            sum_tile<S, O>(a, bounds[r], bounds[r + 1], t * kColumns, std::min(kColumns, a.width - t * kColumns));
}

}  // namespace

void gather_sum(const GatherArgs& a, int threads) {
    if (a.m < 0 || a.width < 0 || a.src_rows < 0 || a.num_order < 0)
        throw std::invalid_argument("gather_sum: m, width, src_rows and num_order must be >= 0");
    if (a.m == 0 || a.width == 0) return;
    if (a.src_row_stride < 0 || (a.m > 1 && a.out_row_stride < a.width))
        throw std::invalid_argument("gather_sum: the row stride of src must be >= 0, that of out >= width");
    for (int64_t j = 0; j < a.m; ++j)
        if (a.offsets[j] < 0 || a.offsets[j + 1] < a.offsets[j])
            throw std::invalid_argument("gather_sum: offsets[" + std::to_string(j) +
                                        "] is negative or above the next one");
    if (a.offsets[a.m] > a.num_order)
        throw std::invalid_argument("gather_sum: offsets end at " + std::to_string(a.offsets[a.m]) + ", order at " +
                                    std::to_string(a.num_order));
    int64_t least = 0, most = -1;
    for (int64_t i = a.offsets[0]; i < a.offsets[a.m]; ++i) {
        least = std::min(least, a.order[i]);
        most = std::max(most, a.order[i]);
    }
    if (least < 0 || most >= a.src_rows)
        throw std::invalid_argument("gather_sum: order must be in [0, " + std::to_string(a.src_rows) + "); got " +
                                    std::to_string(least) + " to " + std::to_string(most));
    threads = resolve_threads(threads);
    if (a.src_dtype == DType::float32)
        a.out_dtype == DType::float32 ? run<float, float>(a, threads) : run<float, uint16_t>(a, threads);
    else
        a.out_dtype == DType::float32 ? run<uint16_t, float>(a, threads) : run<uint16_t, uint16_t>(a, threads);
}

}  // namespace vdengine
