// What a decoding step on a CPU is made of: a linear layer over a few rows, which is bound by reading its weight, and
// attention of one query per row over a paged cache.

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <utility>

#include "bf16.h"
#include "native.h"

namespace vdengine {
namespace {

#define VD_KERNEL "decode_kernel.inl"
#include "each_isa.inl"

struct Functions {
    void (*linear)(const LinearArgs&, const LinearWeight&, int64_t, int64_t);
    void (*attend)(const DecodeArgs&, int64_t, int64_t, float*);
    int64_t (*scratch)(const DecodeArgs&);
};

Functions choose([[maybe_unused]] const std::string& simd, bool wide) {
#define VD_FUNCTIONS(isa)                                                                                   \
    (wide ? Functions{isa::linear_columns<float>, isa::attend<float>, isa::scratch_floats}                  \
          : Functions{isa::linear_columns<uint16_t>, isa::attend<uint16_t>, isa::scratch_floats})
#if VD_X86
    if (simd == "avx512") return VD_FUNCTIONS(avx512);
    if (simd == "avx2") return VD_FUNCTIONS(avx2);
#endif
    return VD_FUNCTIONS(baseline);
#undef VD_FUNCTIONS
}

constexpr int64_t kMostHeads = 4096;  // and of their dimension: a thread's scratch is then at most 130 MiB
constexpr int64_t kTile = 16;  // columns a thread takes at a time

// Threads for work that reads so many numbers: below some ten microseconds of it, starting a second one costs more.
[[maybe_unused]] int threads_for(int64_t numbers, int threads) {
    return numbers < 100000 ? 1 : resolve_threads(threads);
}

}  // namespace

void thin_linear(const LinearArgs& args, const std::vector<LinearWeight>& weights, int threads,
                 const std::string& simd) {
    if (args.rows < 0 || args.width < 1 || args.x_row_stride < 0)
        throw std::invalid_argument("rows and their stride must be >= 0, and width >= 1");
    std::vector<int64_t> tiles{0};  // before each weight
    for (const LinearWeight& weight : weights) tiles.push_back(tiles.back() + (weight.columns + kTile - 1) / kTile);
    if (args.rows == 0) return;
    const Functions run = choose(resolve_simd(simd), args.weight_dtype == DType::float32);
    [[maybe_unused]] const int num_threads = threads_for(tiles.back() * kTile * args.width, threads);
#pragma omp parallel for schedule(static) num_threads(num_threads) if (num_threads > 1)
    for (int64_t tile = 0; tile < tiles.back(); ++tile) {
        size_t i = 0;
        while (tile >= tiles[i + 1]) ++i;
        const int64_t first = (tile - tiles[i]) * kTile;
        run.linear(args, weights[i], first, std::min(first + kTile, weights[i].columns));
    }
}

void decode_attention(const DecodeArgs& args, int threads, const std::string& simd) {
    if (args.kv_heads < 1 || args.heads < 1 || args.heads % args.kv_heads != 0 || args.dim < 1 || args.block < 1 ||
        args.window < 0)
        throw std::invalid_argument("heads must be a multiple of kv_heads, dim and block >= 1, and window >= 0");
    if (args.rows < 0 || args.num_blocks < 0 || args.max_blocks < 0 || args.q_row_stride < 0 ||
        args.table_row_stride < 0)
        throw std::invalid_argument("rows, num_blocks, max_blocks and the row strides must be >= 0");
    // Nothing that is allocated or multiplied below comes near its limit then: an exception cannot leave a thread.
    if (args.heads > kMostHeads || args.dim > kMostHeads || std::max(args.block, args.max_blocks) > INT32_MAX)
        throw std::invalid_argument("heads and dim must be at most " + std::to_string(kMostHeads) +
                                    ", block and max_blocks at most 2^31 - 1");
    int64_t keys = 0;
    for (int64_t s = 0; s < args.rows; ++s) {
        const int64_t length = args.lengths[s], used = (length + args.block - 1) / args.block;
        const std::string row = "decode_attention: row " + std::to_string(s) + ": ";
        if (length < 0 || used > args.max_blocks)
            throw std::invalid_argument(row + "length " + std::to_string(length) + " is outside 0.." +
                                        std::to_string(args.max_blocks * args.block) + ", what its blocks hold");
        for (int64_t i = 0; i < used; ++i)
            if (const int64_t block = args.table[s * args.table_row_stride + i]; block < 0 || block >= args.num_blocks)
                throw std::invalid_argument(row + "block " + std::to_string(block) + " is outside 0.." +
                                            std::to_string(args.num_blocks - 1));
        keys += args.window > 0 ? std::min(length, args.window) : length;
    }
    const Functions run = choose(resolve_simd(simd), args.dtype == DType::float32);
    [[maybe_unused]] const int num_threads = threads_for(2 * keys * args.kv_heads * args.dim, threads);
#pragma omp parallel num_threads(num_threads) if (num_threads > 1)
    {
        std::vector<float> scratch(static_cast<size_t>(run.scratch(args)));
#pragma omp for schedule(dynamic) collapse(2)
        for (int64_t s = 0; s < args.rows; ++s)
            for (int64_t h = 0; h < args.kv_heads; ++h) run.attend(args, s, h, scratch.data());
    }
}

}  // namespace vdengine
