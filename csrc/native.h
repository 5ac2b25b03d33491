// The native part of vdengine, without Python: module.cpp binds these functions, nothing else includes pybind11.
// Errors are std::invalid_argument; pybind11 turns them into ValueError.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace vdengine {

// ---- threads ------------------------------------------------------------------------------------------------

// Threads for a call that was asked to use `requested` (0: the number set by set_num_threads, or OpenMP's own).
int resolve_threads(int requested);
void set_num_threads(int n);
bool has_openmp();

// ---- packing.cpp --------------------------------------------------------------------------------------------

// Deals n trees to ranks * micro_steps bins; returns micro_steps and writes each tree's bin.
int64_t plan_packs(const int64_t* num_tokens, const double* cost, int64_t n, int64_t ranks, int64_t budget,
                   int32_t* bin_of_tree);

// ---- assemble.cpp -------------------------------------------------------------------------------------------

// A flat forest: tree t has the prompt tokens[prompt_start[t] :][: prompt_len[t]] and the branches
// tree_start[t] .. tree_start[t + 1] of the branch table.
struct Forest {
    const int32_t* tokens;
    const uint8_t* scored;
    int64_t num_tokens;
    const int64_t* tree_start;
    const int64_t* prompt_start;
    const int64_t* prompt_len;
    int64_t num_trees;
    const int64_t* branch_start;
    const int64_t* branch_len;
    int64_t num_branches;
};

struct PackSizes {
    int64_t tokens = 0;
    int64_t segments = 0;
    int64_t keys = 0;  // 0 when no tree has two branches: keys are then the query rows themselves
    int64_t scored = 0;
    int64_t branches = 0;
    int64_t max_q = 0;
    int64_t max_k = 0;
};

// Where fill_pack writes; each pointer has the length named by PackSizes.
struct PackArrays {
    int64_t* tokens;
    int32_t* positions;
    int32_t* cu_seqlens_q;
    int32_t* cu_seqlens_k;
    int64_t* kv_index;  // null when sizes.keys is 0
    int64_t* rows;
    int64_t* targets;
    int64_t* branch_offsets;
    int64_t* tree_of_branch;
    int64_t* rows_order;
    int64_t* rows_offsets;
    int64_t* kv_order;  // null when sizes.keys is 0
    int64_t* kv_offsets;
    int64_t* token_order;
};

// Checks the selected trees against the forest's bounds and counts what they need.
PackSizes measure_pack(const Forest& forest, const int64_t* select, int64_t num_selected);

// Writes the pack. `unique_tokens` and `token_offsets` are sized here: their length is known only after the sort.
void fill_pack(const Forest& forest, const int64_t* select, int64_t num_selected, const PackSizes& sizes,
               const PackArrays& out, std::vector<int64_t>& unique_tokens, std::vector<int64_t>& token_offsets);

// ---- rows.cpp -----------------------------------------------------------------------------------------------

enum class DType { float32, bfloat16 };

struct RowsArgs {
    const void* logits;
    DType logits_dtype;
    int64_t n;
    int64_t v;
    int64_t row_stride;  // elements
    const int64_t* targets;
    double inv_temperature;
    float* logp;
    float* lse;      // may be null
    float* entropy;  // may be null
    void* p;         // may be null; may be `logits` when the dtypes and strides are the same
    DType p_dtype;
    int64_t p_row_stride;
};

// Names of the vector code this machine can run, best first.
std::vector<std::string> simd_levels();
// The best one for "auto"; an error where the name is not one of them.
std::string resolve_simd(const std::string& simd);
void log_softmax_rows(const RowsArgs& args, int threads, const std::string& simd);

// ---- gather.cpp ---------------------------------------------------------------------------------------------

struct GatherArgs {
    const void* src;
    DType src_dtype;
    int64_t src_rows;
    int64_t width;
    int64_t src_row_stride;
    const int64_t* order;
    int64_t num_order;
    const int64_t* offsets;
    int64_t m;
    void* out;
    DType out_dtype;
    int64_t out_row_stride;
};

void gather_sum(const GatherArgs& args, int threads);

// ---- decode.cpp ---------------------------------------------------------------------------------------------

struct LinearWeight {
    const void* data;  // [columns, width] LinearArgs::weight_dtype
    int64_t columns;
    int64_t row_stride;
    int64_t column;  // of y where its columns begin
};

struct LinearArgs {
    const float* x;  // [rows, width]
    int64_t rows;
    int64_t width;
    int64_t x_row_stride;
    DType weight_dtype;
    float* y;  // [rows, columns of all weights]
    int64_t y_row_stride;
};

// y = x @ weight.T of every weight, side by side.
void thin_linear(const LinearArgs& args, const std::vector<LinearWeight>& weights, int threads,
                 const std::string& simd);

struct DecodeArgs {
    const void* q;  // [rows, heads, dim]
    DType dtype;    // of q, keys, values and out
    int64_t rows;
    int64_t heads;
    int64_t kv_heads;
    int64_t dim;
    int64_t q_row_stride;
    const void* keys;  // [num_blocks, block, kv_heads, dim]
    const void* values;
    int64_t num_blocks;
    int64_t block;
    const int32_t* table;  // [rows, max_blocks]
    int64_t max_blocks;
    int64_t table_row_stride;
    const int32_t* lengths;  // [rows]
    double scale;            // of the scores
    int64_t window;          // keys of a row that are attended to: its last ones; 0: all
    void* out;               // [rows, heads, dim]
};

// Each row's attention over its first `lengths[row]` keys; zeros where there are none.
void decode_attention(const DecodeArgs& args, int threads, const std::string& simd);

}  // namespace vdengine
