// Products of a few rows, and attention of one query per row, compiled once per instruction set: see each_isa.inl.

// Rows of x a tile takes, with four of w: what they sum to, and what they are, fits the registers.
constexpr int kRows = VD_LANES == 16 ? 6 : 2;

// y[r, c] = x[r] . w[c] for R rows of x and C (4 or 1) rows of w: 4 R sums at a time, each vector that is read used 4
// or R times. A sum goes along k in the same order whatever R and C: its bits do not depend on what is beside it.
template <int R, int C, typename W>
VD_INLINE void product_tile(const float* x, int64_t x_stride, const W* w, int64_t w_stride, int64_t k, float* y,
                            int64_t y_stride) {
    Floats sum[R][4];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < 4; ++c) sum[r][c] = Floats{};
    int64_t i = 0;
    for (; i + VD_LANES <= k; i += VD_LANES) {
        Floats b[C];
        for (int c = 0; c < C; ++c) {
            b[c] = load(w + c * w_stride + i);
            __builtin_prefetch(w + (c + C) * w_stride + i);  // the next tile's, on its way during this one's arithmetic
        }
        for (int r = 0; r < R; ++r) {
            const Floats a = load(x + r * x_stride + i);
            for (int c = 0; c < C; ++c) sum[r][c] += a * b[c];
        }
    }
    if (i < k)
        for (int r = 0; r < R; ++r)
            for (int c = 0; c < C; ++c)
                sum[r][c] += load_up_to(x + r * x_stride + i, k - i, 0) * load_up_to(w + c * w_stride + i, k - i, 0);
    for (int r = 0; r < R; ++r) {
        const Floats sums = horizontal_sums(sum[r][0], sum[r][1], sum[r][2], sum[r][3]);
        __builtin_memcpy(y + r * y_stride, &sums, C * sizeof(float));
    }
}

// The same for `rows` rows, R at a time, and what is left over in one smaller tile.
template <int R, int C, typename W>
VD_INLINE void product_rows(const float* x, int64_t x_stride, int64_t rows, const W* w, int64_t w_stride, int64_t k,
                            float* y, int64_t y_stride) {
    int64_t r = 0;
    for (; r + R <= rows; r += R)
        product_tile<R, C>(x + r * x_stride, x_stride, w, w_stride, k, y + r * y_stride, y_stride);
    if constexpr (R > 1)
        if (r < rows)
            product_rows<R - 1, C>(x + r * x_stride, x_stride, rows - r, w, w_stride, k, y + r * y_stride, y_stride);
}

// y [rows, columns] = x [rows, k] @ w [columns, k].T
template <typename W>
VD_INLINE void product(const float* x, int64_t x_stride, int64_t rows, const W* w, int64_t w_stride, int64_t columns,
                       int64_t k, float* y, int64_t y_stride) {
    int64_t c = 0;
    for (; c + 4 <= columns; c += 4)
        product_rows<kRows, 4>(x, x_stride, rows, w + c * w_stride, w_stride, k, y + c, y_stride);
    for (; c < columns; ++c) product_rows<kRows, 1>(x, x_stride, rows, w + c * w_stride, w_stride, k, y + c, y_stride);
}

template <typename W>
VD_TARGET static void linear_columns(const LinearArgs& a, const LinearWeight& weight, int64_t first, int64_t last) {
    const W* w = static_cast<const W*>(weight.data) + first * weight.row_stride;
    product(a.x, a.x_row_stride, a.rows, w, weight.row_stride, last - first, a.width, a.y + weight.column + first,
            a.y_row_stride);
}

// Keys between two looks at the running maximum. Their scores and what is read of them stay in the first-level cache.
constexpr int64_t kKeys = 64;

// sum[r] += p[r] @ v for R rows of weights p [R, keys], one vector of v's columns.
template <int R, typename T>
VD_INLINE void add_values(const float* p, const T* v, int64_t v_stride, int64_t keys, int64_t columns, float* sum,
                          int64_t sum_stride) {
    Floats total[R];
    for (int r = 0; r < R; ++r) total[r] = load(sum + r * sum_stride);
    for (int64_t j = 0; j < keys; ++j) {
        const Floats b = load_up_to(v + j * v_stride, columns, 0);
        for (int r = 0; r < R; ++r) total[r] += splat(p[r * kKeys + j]) * b;
    }
    for (int r = 0; r < R; ++r) store(sum + r * sum_stride, total[r]);
}

// Asks for rows of the cache that are read next: they lie on pages that no other prefetcher would guess.
template <typename T>
VD_INLINE void prefetch_rows(const T* x, int64_t stride, int64_t rows, int64_t columns) {
    constexpr int64_t line = 64 / sizeof(T);
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t c = 0; c < columns; c += line) __builtin_prefetch(x + r * stride + c);
}

// All queries of one row that share a key head: scores, a softmax with a running maximum, and the weighted values.
// fp32 throughout; `scratch` has room for queries and sums [group, padded], then scores [group, kKeys], maxima and
// totals [group].
template <typename T>
VD_TARGET static void attend(const DecodeArgs& a, int64_t row, int64_t head, float* scratch) {
    const int64_t group = a.heads / a.kv_heads, padded = (a.dim + VD_LANES - 1) / VD_LANES * VD_LANES;
    float* queries = scratch;
    float* sums = queries + group * padded;
    float* scores = sums + group * padded;
    float* maxima = scores + group * kKeys;
    float* totals = maxima + group;
    const Scale scale = scale_of(a.scale);
    const T* q = static_cast<const T*>(a.q) + row * a.q_row_stride + head * group * a.dim;
    for (int64_t g = 0; g < group; ++g) {
        for (int64_t i = 0; i < a.dim; ++i) queries[g * padded + i] = widen(q[g * a.dim + i]);
        for (int64_t i = 0; i < padded; ++i) sums[g * padded + i] = 0;
        maxima[g] = -INFINITY;
        totals[g] = 0;
    }

    const int64_t length = a.lengths[row], stride = a.kv_heads * a.dim;
    const int32_t* table = a.table + row * a.table_row_stride;
    const T* all_keys = static_cast<const T*>(a.keys) + head * a.dim;
    const T* all_values = static_cast<const T*>(a.values) + head * a.dim;
    const auto place = [&](int64_t at) { return (table[at / a.block] * a.block + at % a.block) * stride; };
    const int64_t first = a.window > 0 && a.window < length ? length - a.window : 0;
    for (int64_t start = first; start < length; start += kKeys) {
        const int64_t keys = length - start < kKeys ? length - start : kKeys;
        int64_t run = 0;  // keys that follow each other in one block of the cache
        for (int64_t j = 0; j < keys; j += run) {
            const int64_t at = start + j, left = a.block - at % a.block, from = place(at);
            run = left < keys - j ? left : keys - j;
            prefetch_rows(all_values + from, stride, run, a.dim);
            product(queries, padded, group, all_keys + from, stride, run, a.dim, scores + j, kKeys);
        }
        for (int64_t g = 0; g < group; ++g) {
            float* s = scores + g * kKeys;
            for (int64_t j = keys; j < kKeys; ++j) s[j] = -INFINITY;  // no maximum, and no weight
            Floats best = load(s);
            for (int64_t j = VD_LANES; j < kKeys; j += VD_LANES) best = larger(load(s + j), best);
            const float high = horizontal_max(best), max = high > maxima[g] ? high : maxima[g];
            Floats fall = splat(maxima[g] - max);
            const float keep = exp2_scaled(fall, scale)[0];
            Floats total{};
            for (int64_t j = 0; j < kKeys; j += VD_LANES) {
                Floats d = load(s + j) - max;
                const Floats p = exp2_scaled(d, scale);
                store(s + j, p);
                total += p;
            }
            maxima[g] = max;
            totals[g] = totals[g] * keep + horizontal_sums(total, total, total, total)[0];
            for (int64_t i = 0; i < padded; i += VD_LANES)
                store(sums + g * padded + i, load(sums + g * padded + i) * keep);
        }
        for (int64_t j = 0; j < keys; j += run) {
            const int64_t at = start + j, left = a.block - at % a.block;
            run = left < keys - j ? left : keys - j;
            const T* v = all_values + place(at);
            if (at + kKeys < length) prefetch_rows(all_keys + place(at + kKeys), stride, run, a.dim);
            for (int64_t i = 0; i < a.dim; i += VD_LANES) {
                const T* column = v + i;
                const int64_t columns = a.dim - i;
                int64_t g = 0;
                for (; g + 4 <= group; g += 4)
                    add_values<4>(scores + g * kKeys + j, column, stride, run, columns, sums + g * padded + i, padded);
                float* sum = sums + g * padded + i;
                const float* p = scores + g * kKeys + j;
                if (group - g == 3) add_values<3>(p, column, stride, run, columns, sum, padded);
                if (group - g == 2) add_values<2>(p, column, stride, run, columns, sum, padded);
                if (group - g == 1) add_values<1>(p, column, stride, run, columns, sum, padded);
            }
        }
    }

    T* out = static_cast<T*>(a.out) + (row * a.heads + head * group) * a.dim;
    for (int64_t g = 0; g < group; ++g)
        for (int64_t i = 0; i < a.dim; ++i)
            narrow(out + g * a.dim + i, length == 0 ? 0.0f : sums[g * padded + i] / totals[g]);
}

static int64_t scratch_floats(const DecodeArgs& a) {
    const int64_t group = a.heads / a.kv_heads, padded = (a.dim + VD_LANES - 1) / VD_LANES * VD_LANES;
    return group * (2 * padded + kKeys + 2);
}
