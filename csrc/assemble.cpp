// A pack from selected trees of a flat forest, and the inverses of its gathers, in linear time.

#include <algorithm>
#include <stdexcept>

#include "native.h"

namespace vdengine {
namespace {

constexpr int64_t kMaxIndex = INT32_MAX;  // positions and cu_seqlens are int32, as attention kernels want them

std::invalid_argument bad_tree(int64_t tree, const std::string& what) {
    return std::invalid_argument("tree " + std::to_string(tree) + ": " + what);
}

// Throws unless [start, start + length) lies in [0, size) and is not empty. Written without overflow.
void check_span(int64_t tree, const char* name, int64_t start, int64_t length, int64_t size) {
    if (length <= 0) throw bad_tree(tree, std::string(name) + " is empty");
    if (start < 0 || length > size || start > size - length)
        throw bad_tree(tree, std::string(name) + " [" + std::to_string(start) + ", +" + std::to_string(length) +
                                 ") lies outside the " + std::to_string(size) + " stored tokens");
}

// Counting sort of `index` (values in [0, m)): order lists, for each value in turn, where it occurs, ascending.
void invert(const int64_t* index, int64_t n, int64_t m, int64_t* order, int64_t* offsets) {
    std::fill(offsets, offsets + m + 1, int64_t{0});
    for (int64_t i = 0; i < n; ++i) ++offsets[index[i] + 1];
    for (int64_t j = 0; j < m; ++j) offsets[j + 1] += offsets[j];
    std::vector<int64_t> next(offsets, offsets + m);
    for (int64_t i = 0; i < n; ++i) order[next[index[i]]++] = i;
}

// Positions sorted by token id, ascending within an id: a stable radix sort, as ids can be far larger than n.
void sort_positions(const int64_t* tokens, int64_t n, int64_t* order) {
    constexpr int kBits = 11;
    constexpr int64_t kMask = (1 << kBits) - 1;
    int64_t largest = 0;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, tokens[i]);
    for (int64_t i = 0; i < n; ++i) order[i] = i;
    std::vector<int64_t> other(n);
    int64_t* from = order;
    int64_t* to = other.data();
    for (int shift = 0; (largest >> shift) > 0; shift += kBits) {
        int64_t start[kMask + 2] = {0};
        for (int64_t i = 0; i < n; ++i) ++start[((tokens[i] >> shift) & kMask) + 1];
        for (int64_t d = 0; d <= kMask; ++d) start[d + 1] += start[d];
        for (int64_t i = 0; i < n; ++i) to[start[(tokens[from[i]] >> shift) & kMask]++] = from[i];
        std::swap(from, to);
    }
    if (from != order) std::copy(from, from + n, order);
}

}  // namespace

PackSizes measure_pack(const Forest& f, const int64_t* select, int64_t num_selected) {
    PackSizes sizes;
    bool shared_prompts = false;
    int64_t keys = 0;
    for (int64_t s = 0; s < num_selected; ++s) {
        const int64_t t = select[s];
        if (t < 0 || t >= f.num_trees)
            throw std::invalid_argument("select[" + std::to_string(s) + "] is " + std::to_string(t) +
                                        ", outside 0.." + std::to_string(f.num_trees - 1));
        const int64_t first = f.tree_start[t], last = f.tree_start[t + 1];
        if (first < 0 || last > f.num_branches || first >= last)
            throw bad_tree(t, "tree_start " + std::to_string(first) + ".." + std::to_string(last) +
                                  " is empty or outside the " + std::to_string(f.num_branches) + " branches");
        const int64_t prompt = f.prompt_len[t];
        check_span(t, "prompt", f.prompt_start[t], prompt, f.num_tokens);
        const bool one = last - first == 1;
        shared_prompts |= !one;
        sizes.tokens += prompt;
        sizes.branches += last - first;
        if (!one) {
            sizes.segments += 1;
            keys += prompt;
            sizes.max_q = std::max(sizes.max_q, prompt);
        }
        for (int64_t b = first; b < last; ++b) {
            const int64_t length = f.branch_len[b];
            check_span(t, "branch", f.branch_start[b], length, f.num_tokens);
            const uint8_t* scored = f.scored + f.branch_start[b];
            int64_t count = 0;
            for (int64_t i = 0; i < length; ++i) count += scored[i] != 0;
            sizes.scored += count;
            sizes.tokens += length;
            sizes.segments += 1;
            keys += prompt + length;
            sizes.max_q = std::max(sizes.max_q, one ? prompt + length : length);
            sizes.max_k = std::max(sizes.max_k, prompt + length);
        }
        if (keys > kMaxIndex)
            throw std::invalid_argument("the pack has more than " + std::to_string(kMaxIndex) +
                                        " keys: give it fewer trees");
    }
    if (shared_prompts) sizes.keys = keys;
    return sizes;
}

void fill_pack(const Forest& f, const int64_t* select, int64_t num_selected, const PackSizes& sizes,
               const PackArrays& out, std::vector<int64_t>& unique_tokens, std::vector<int64_t>& token_offsets) {
    int64_t row = 0, key = 0, segment = 0, scored_row = 0, branch = 0;
    auto copy_tokens = [&](int64_t tree, int64_t start, int64_t length) {
        for (int64_t i = 0; i < length; ++i) {
            const int32_t token = f.tokens[start + i];
            if (token < 0) throw bad_tree(tree, "token id " + std::to_string(token) + " is negative");
            out.tokens[row + i] = token;
        }
    };
    auto add_keys = [&](int64_t first, int64_t length) {
        if (out.kv_index)
            for (int64_t i = 0; i < length; ++i) out.kv_index[key + i] = first + i;
        key += length;
    };
    auto end_segment = [&] {
        ++segment;
        out.cu_seqlens_q[segment] = static_cast<int32_t>(row);
        out.cu_seqlens_k[segment] = static_cast<int32_t>(key);
    };

    out.cu_seqlens_q[0] = out.cu_seqlens_k[0] = 0;
    out.branch_offsets[0] = 0;
    for (int64_t s = 0; s < num_selected; ++s) {
        const int64_t t = select[s];
        const int64_t first = f.tree_start[t], last = f.tree_start[t + 1];
        const int64_t prompt = f.prompt_len[t], prompt_row = row;
        const bool one = last - first == 1;
        copy_tokens(t, f.prompt_start[t], prompt);
        for (int64_t i = 0; i < prompt; ++i) out.positions[row + i] = static_cast<int32_t>(i);
        row += prompt;
        if (!one) {
            add_keys(prompt_row, prompt);
            end_segment();
        }
        for (int64_t b = first; b < last; ++b) {
            const int64_t start = f.branch_start[b], length = f.branch_len[b];
            copy_tokens(t, start, length);
            for (int64_t i = 0; i < length; ++i) {
                out.positions[row + i] = static_cast<int32_t>(prompt + i);
                if (f.scored[start + i]) {
                    // The first token of a branch is predicted by the last row of the prompt.
                    out.rows[scored_row] = i == 0 ? prompt_row + prompt - 1 : row + i - 1;
                    out.targets[scored_row] = f.tokens[start + i];
                    ++scored_row;
                }
            }
            add_keys(prompt_row, prompt);  // a one-branch segment is prompt + branch too, here as its own keys
            add_keys(row, length);
            row += length;
            end_segment();
            out.tree_of_branch[branch] = s;
            out.branch_offsets[++branch] = scored_row;
        }
    }

    invert(out.rows, sizes.scored, sizes.tokens, out.rows_order, out.rows_offsets);
    if (out.kv_index) invert(out.kv_index, sizes.keys, sizes.tokens, out.kv_order, out.kv_offsets);
    sort_positions(out.tokens, sizes.tokens, out.token_order);
    unique_tokens.clear();
    token_offsets.clear();
    for (int64_t i = 0; i < sizes.tokens; ++i) {
        const int64_t token = out.tokens[out.token_order[i]];
        if (unique_tokens.empty() || unique_tokens.back() != token) {
            unique_tokens.push_back(token);
            token_offsets.push_back(i);
        }
    }
    token_offsets.push_back(sizes.tokens);
}

}  // namespace vdengine
