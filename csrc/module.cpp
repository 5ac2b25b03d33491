// Python bindings: checks arguments, allocates results and releases the GIL around the work.

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <atomic>

#include "native.h"

#ifdef _OPENMP
#include <omp.h>
#endif

namespace py = pybind11;

namespace vdengine {
namespace {

std::atomic<int> default_threads{0};

// OpenMP ends the process where it cannot start as many threads as it is asked for.
void check_threads(int n) {
    constexpr int most = 1024;
    if (n < 0 || n > most)
        throw std::invalid_argument("threads must be >= 0 and at most " + std::to_string(most) + ", got " +
                                    std::to_string(n));
}

}  // namespace

int resolve_threads(int requested) {
    check_threads(requested);
    if (requested == 0) requested = default_threads;
#ifdef _OPENMP
    return requested > 0 ? requested : omp_get_max_threads();
#else
    return 1;
#endif
}

void set_num_threads(int n) {
    check_threads(n);
    default_threads = n;
}

bool has_openmp() {
#ifdef _OPENMP
    return true;
#else
    return false;
#endif
}

namespace {

// A one-dimensional C-contiguous array of exactly this dtype: a conversion could silently copy a memory-mapped
// store of many gigabytes.
template <typename T>
class Input {
  public:
    Input(const py::array& array, const char* name, int64_t length = -1) : array_(array) {
        if (!py::array_t<T, py::array::c_style>::check_(array) || array.ndim() != 1)
            throw py::type_error(std::string(name) + " must be a one-dimensional contiguous array of dtype " +
                                 std::string(py::str(py::dtype::of<T>())) + ", got " + std::to_string(array.ndim()) +
                                 " dimensions of dtype " + std::string(py::str(array.dtype())));
        if (reinterpret_cast<uintptr_t>(array.data()) % alignof(T) != 0)
            throw py::value_error(std::string(name) + " is not aligned to its dtype");
        if (length >= 0 && array.size() != length)
            throw py::value_error(std::string(name) + " must have " + std::to_string(length) + " elements, has " +
                                  std::to_string(array.size()));
    }
    const T* data() const { return static_cast<const T*>(array_.data()); }
    int64_t size() const { return array_.size(); }

  private:
    py::array array_;
};

template <typename T>
py::array_t<T> new_array(int64_t length) {
    return py::array_t<T>(static_cast<py::ssize_t>(length));
}

py::array_t<int64_t> to_array(const std::vector<int64_t>& values) {
    return py::array_t<int64_t>(static_cast<py::ssize_t>(values.size()), values.data());
}

DType parse_dtype(const std::string& name, const char* what) {
    if (name == "float32") return DType::float32;
    if (name == "bfloat16") return DType::bfloat16;
    throw py::value_error(std::string(what) + " must be 'float32' or 'bfloat16', got '" + name + "'");
}

size_t alignment(DType dtype) { return dtype == DType::float32 ? alignof(float) : alignof(uint16_t); }

// The memory at an address that Python gave. Its size cannot be checked, but that there is some where the call will
// touch it, and that it may be read as its type.
template <typename T>
T* pointer(uintptr_t address, const char* name, bool touched, size_t aligned) {
    if (touched && address == 0) throw py::value_error(std::string(name) + " is null");
    if (address % aligned != 0)
        throw py::value_error(std::string(name) + " is not aligned to " + std::to_string(aligned) + " bytes");
    return reinterpret_cast<T*>(address);
}

template <typename T>
T* pointer(uintptr_t address, const char* name, bool touched) {
    return pointer<T>(address, name, touched, alignof(T));
}

py::tuple py_plan_packs(const py::array& num_tokens, const py::array& cost, int64_t ranks, int64_t budget) {
    const Input<int64_t> tokens(num_tokens, "num_tokens");
    const Input<double> costs(cost, "cost", tokens.size());
    py::array_t<int32_t> bins = new_array<int32_t>(tokens.size());
    int32_t* out = bins.mutable_data();
    int64_t micro_steps;
    {
        py::gil_scoped_release release;
        micro_steps = plan_packs(tokens.data(), costs.data(), tokens.size(), ranks, budget, out);
    }
    return py::make_tuple(bins, micro_steps);
}

py::dict py_assemble(const py::array& tokens, const py::array& scored, const py::array& tree_start,
                     const py::array& prompt_start, const py::array& prompt_len, const py::array& branch_start,
                     const py::array& branch_len, const py::array& select) {
    const Input<int32_t> in_tokens(tokens, "tokens");
    const Input<uint8_t> in_scored(scored, "scored", in_tokens.size());
    const Input<int64_t> in_prompt_start(prompt_start, "prompt_start");
    const int64_t n = in_prompt_start.size();
    const Input<int64_t> in_tree_start(tree_start, "tree_start", n + 1);
    const Input<int64_t> in_prompt_len(prompt_len, "prompt_len", n);
    const Input<int64_t> in_branch_start(branch_start, "branch_start");
    const Input<int64_t> in_branch_len(branch_len, "branch_len", in_branch_start.size());
    const Input<int64_t> in_select(select, "select");
    const Forest forest{in_tokens.data(),       in_scored.data(),     in_tokens.size(),
                        in_tree_start.data(),   in_prompt_start.data(), in_prompt_len.data(), n,
                        in_branch_start.data(), in_branch_len.data(), in_branch_start.size()};

    PackSizes sizes;
    {
        py::gil_scoped_release release;
        sizes = measure_pack(forest, in_select.data(), in_select.size());
    }
    auto out_tokens = new_array<int64_t>(sizes.tokens);
    auto positions = new_array<int32_t>(sizes.tokens);
    auto cu_seqlens_q = new_array<int32_t>(sizes.segments + 1);
    auto cu_seqlens_k = new_array<int32_t>(sizes.segments + 1);
    auto rows = new_array<int64_t>(sizes.scored);
    auto targets = new_array<int64_t>(sizes.scored);
    auto branch_offsets = new_array<int64_t>(sizes.branches + 1);
    auto tree_of_branch = new_array<int64_t>(sizes.branches);
    auto rows_order = new_array<int64_t>(sizes.scored);
    auto rows_offsets = new_array<int64_t>(sizes.tokens + 1);
    auto token_order = new_array<int64_t>(sizes.tokens);
    const bool gather = sizes.keys > 0;
    auto kv_index = new_array<int64_t>(sizes.keys);
    auto kv_order = new_array<int64_t>(sizes.keys);
    auto kv_offsets = new_array<int64_t>(gather ? sizes.tokens + 1 : 0);
    std::vector<int64_t> unique_tokens, token_offsets;
    PackArrays out;
    out.tokens = out_tokens.mutable_data();
    out.positions = positions.mutable_data();
    out.cu_seqlens_q = cu_seqlens_q.mutable_data();
    out.cu_seqlens_k = cu_seqlens_k.mutable_data();
    out.kv_index = gather ? kv_index.mutable_data() : nullptr;
    out.rows = rows.mutable_data();
    out.targets = targets.mutable_data();
    out.branch_offsets = branch_offsets.mutable_data();
    out.tree_of_branch = tree_of_branch.mutable_data();
    out.rows_order = rows_order.mutable_data();
    out.rows_offsets = rows_offsets.mutable_data();
    out.kv_order = gather ? kv_order.mutable_data() : nullptr;
    out.kv_offsets = gather ? kv_offsets.mutable_data() : nullptr;
    out.token_order = token_order.mutable_data();
    {
        py::gil_scoped_release release;
        fill_pack(forest, in_select.data(), in_select.size(), sizes, out, unique_tokens, token_offsets);
    }

    py::dict pack;
    pack["tokens"] = out_tokens;
    pack["positions"] = positions;
    pack["cu_seqlens_q"] = cu_seqlens_q;
    pack["cu_seqlens_k"] = cu_seqlens_k;
    pack["kv_index"] = gather ? py::object(kv_index) : py::none();
    pack["max_q"] = sizes.max_q;
    pack["max_k"] = sizes.max_k;
    pack["rows"] = rows;
    pack["targets"] = targets;
    pack["branch_offsets"] = branch_offsets;
    pack["tree_of_branch"] = tree_of_branch;
    pack["tree_ids"] = py::array_t<int64_t>(in_select.size(), in_select.data());
    pack["rows_inverse"] = py::make_tuple(rows_order, rows_offsets);
    pack["kv_inverse"] = gather ? py::object(py::make_tuple(kv_order, kv_offsets)) : py::none();
    pack["unique_tokens"] = to_array(unique_tokens);
    pack["token_inverse"] = py::make_tuple(token_order, to_array(token_offsets));
    return pack;
}

void py_log_softmax_rows(uintptr_t logits_ptr, const std::string& logits_dtype, int64_t n, int64_t v,
                         int64_t row_stride, uintptr_t targets_ptr, double inv_temperature, uintptr_t logp_ptr,
                         uintptr_t lse_ptr, uintptr_t entropy_ptr, uintptr_t p_ptr, const std::string& p_dtype,
                         int64_t p_row_stride, int threads, const std::string& simd) {
    RowsArgs args;
    args.logits_dtype = parse_dtype(logits_dtype, "logits_dtype");
    args.logits = pointer<const void>(logits_ptr, "logits_ptr", n > 0, alignment(args.logits_dtype));
    args.n = n;
    args.v = v;
    args.row_stride = row_stride;
    args.targets = pointer<const int64_t>(targets_ptr, "targets_ptr", n > 0);
    args.inv_temperature = inv_temperature;
    args.logp = pointer<float>(logp_ptr, "logp_ptr", n > 0);
    args.lse = pointer<float>(lse_ptr, "lse_ptr", false);
    args.entropy = pointer<float>(entropy_ptr, "entropy_ptr", false);
    args.p_dtype = parse_dtype(p_dtype, "p_dtype");
    args.p = pointer<void>(p_ptr, "p_ptr", false, alignment(args.p_dtype));
    args.p_row_stride = p_row_stride;
    py::gil_scoped_release release;
    log_softmax_rows(args, threads, simd);
}

void py_gather_sum(uintptr_t src_ptr, const std::string& src_dtype, int64_t src_rows, int64_t width,
                   int64_t src_row_stride, uintptr_t order_ptr, int64_t num_order, uintptr_t offsets_ptr, int64_t m,
                   uintptr_t out_ptr, const std::string& out_dtype, int64_t out_row_stride, int threads) {
    GatherArgs args;
    args.src_dtype = parse_dtype(src_dtype, "src_dtype");
    args.src = pointer<const void>(src_ptr, "src_ptr", width > 0 && num_order > 0, alignment(args.src_dtype));
    args.src_rows = src_rows;
    args.width = width;
    args.src_row_stride = src_row_stride;
    args.order = pointer<const int64_t>(order_ptr, "order_ptr", num_order > 0);
    args.num_order = num_order;
    args.offsets = pointer<const int64_t>(offsets_ptr, "offsets_ptr", m > 0);
    args.m = m;
    args.out_dtype = parse_dtype(out_dtype, "out_dtype");
    args.out = pointer<void>(out_ptr, "out_ptr", m > 0 && width > 0, alignment(args.out_dtype));
    args.out_row_stride = out_row_stride;
    py::gil_scoped_release release;
    gather_sum(args, threads);
}

void py_thin_linear(uintptr_t x_ptr, int64_t rows, int64_t width, int64_t x_row_stride,
                    const std::vector<std::tuple<uintptr_t, int64_t, int64_t>>& weights,
                    const std::string& weight_dtype, uintptr_t y_ptr, int threads, const std::string& simd) {
    LinearArgs args;
    args.x = pointer<const float>(x_ptr, "x_ptr", rows > 0);
    args.rows = rows;
    args.width = width;
    args.x_row_stride = x_row_stride;
    args.weight_dtype = parse_dtype(weight_dtype, "weight_dtype");
    args.y_row_stride = 0;
    std::vector<LinearWeight> all;
    for (const auto& [data, columns, row_stride] : weights) {
        if (columns < 0 || columns > INT32_MAX || row_stride < 0)
            throw py::value_error("a weight must have 0 to 2^31 - 1 columns and a row stride >= 0");
        const void* address = pointer<const void>(data, "a weight", columns > 0, alignment(args.weight_dtype));
        all.push_back({address, columns, row_stride, args.y_row_stride});
        args.y_row_stride += columns;
    }
    args.y = pointer<float>(y_ptr, "y_ptr", rows > 0 && args.y_row_stride > 0);
    py::gil_scoped_release release;
    thin_linear(args, all, threads, simd);
}

void py_decode_attention(uintptr_t q_ptr, const std::string& dtype, int64_t rows, int64_t heads, int64_t kv_heads,
                         int64_t dim, int64_t q_row_stride, uintptr_t keys_ptr, uintptr_t values_ptr,
                         int64_t num_blocks, int64_t block, uintptr_t table_ptr, int64_t max_blocks,
                         int64_t table_row_stride, uintptr_t lengths_ptr, double scale, uintptr_t out_ptr, int threads,
                         const std::string& simd, int64_t window) {
    DecodeArgs args;
    args.dtype = parse_dtype(dtype, "dtype");
    args.q = pointer<const void>(q_ptr, "q_ptr", rows > 0, alignment(args.dtype));
    args.rows = rows;
    args.heads = heads;
    args.kv_heads = kv_heads;
    args.dim = dim;
    args.q_row_stride = q_row_stride;
    args.keys = pointer<const void>(keys_ptr, "keys_ptr", num_blocks > 0, alignment(args.dtype));
    args.values = pointer<const void>(values_ptr, "values_ptr", num_blocks > 0, alignment(args.dtype));
    args.num_blocks = num_blocks;
    args.block = block;
    args.table = pointer<const int32_t>(table_ptr, "table_ptr", rows > 0 && max_blocks > 0);
    args.max_blocks = max_blocks;
    args.table_row_stride = table_row_stride;
    args.lengths = pointer<const int32_t>(lengths_ptr, "lengths_ptr", rows > 0);
    args.scale = scale;
    args.window = window;
    args.out = pointer<void>(out_ptr, "out_ptr", rows > 0, alignment(args.dtype));
    py::gil_scoped_release release;
    decode_attention(args, threads, simd);
}

}  // namespace
}  // namespace vdengine

PYBIND11_MODULE(_native, m) {
    using namespace vdengine;
    using py::arg;
    m.doc() = "Packing, batch assembly, CPU row kernels and CPU decoding. Documented in _native.pyi.";
    m.def("plan_packs", &py_plan_packs, arg("num_tokens"), arg("cost"), arg("ranks"), arg("budget"));
    m.def("assemble", &py_assemble, arg("tokens"), arg("scored"), arg("tree_start"), arg("prompt_start"),
          arg("prompt_len"), arg("branch_start"), arg("branch_len"), arg("select"));
    m.def("log_softmax_rows", &py_log_softmax_rows, arg("logits_ptr"), arg("logits_dtype"), arg("n"), arg("v"),
          arg("row_stride"), arg("targets_ptr"), arg("inv_temperature"), arg("logp_ptr"), arg("lse_ptr"),
          arg("entropy_ptr") = 0, arg("p_ptr") = 0, arg("p_dtype") = "float32", arg("p_row_stride") = 0,
          arg("threads") = 0, arg("simd") = "auto");
    m.def("gather_sum", &py_gather_sum, arg("src_ptr"), arg("src_dtype"), arg("src_rows"), arg("width"),
          arg("src_row_stride"), arg("order_ptr"), arg("num_order"), arg("offsets_ptr"), arg("m"), arg("out_ptr"),
          arg("out_dtype"), arg("out_row_stride"), arg("threads") = 0);
    m.def("thin_linear", &py_thin_linear, arg("x_ptr"), arg("rows"), arg("width"), arg("x_row_stride"), arg("weights"),
          arg("weight_dtype"), arg("y_ptr"), arg("threads") = 0, arg("simd") = "auto");
    m.def("decode_attention", &py_decode_attention, arg("q_ptr"), arg("dtype"), arg("rows"), arg("heads"),
          arg("kv_heads"), arg("dim"), arg("q_row_stride"), arg("keys_ptr"), arg("values_ptr"), arg("num_blocks"),
          arg("block"), arg("table_ptr"), arg("max_blocks"), arg("table_row_stride"), arg("lengths_ptr"),
          arg("scale"), arg("out_ptr"), arg("threads") = 0, arg("simd") = "auto", arg("window") = 0);
    m.def("set_num_threads", &set_num_threads, arg("n"));
    m.def("simd_levels", &simd_levels);
    m.def("has_openmp", &has_openmp);
}
