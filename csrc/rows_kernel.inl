// One row of log_softmax_rows, compiled once per instruction set: see each_isa.inl.

// Vectors in flight: exp is a chain of some twelve dependent operations of four cycles each.
constexpr int kUnroll = 4;
constexpr int64_t kStep = kUnroll * VD_LANES;
// The row is read in blocks that stay in the first-level cache between finding their maximum and summing. A block
// is summed in fp32 (at most kBlock / kStep terms a lane) and blocks are added in fp64.
constexpr int64_t kBlock = 4096;

// The maximum, or -inf; NaN is passed over, as the sum will carry it. Past the end of a row logits read as -inf, here and
// below: they are no maximum, and add exp(-inf) = 0.
template <typename T>
VD_INLINE float block_max(const T* x, int64_t count) {
    Floats best[kUnroll];
    for (int u = 0; u < kUnroll; ++u) best[u] = splat(-INFINITY);
    int64_t i = 0;
    for (; i + kStep <= count; i += kStep)
        for (int u = 0; u < kUnroll; ++u) best[u] = larger(load(x + i + u * VD_LANES), best[u]);
    for (; i < count; i += VD_LANES) best[0] = larger(load_up_to(x + i, count - i, -INFINITY), best[0]);
    for (int u = 1; u < kUnroll; ++u) best[0] = larger(best[u], best[0]);
    return horizontal_max(best[0]);
}

// Asks for the step of the next block that lies a block ahead (a hint: the address need not exist). Finding a block's
// maximum is bound by memory and summing it by arithmetic; this lets the two overlap.
template <typename T>
VD_INLINE void prefetch_step(const T* x) {
    const char* bytes = reinterpret_cast<const char*>(x);
    for (int64_t b = 0; b < kStep * static_cast<int64_t>(sizeof(T)); b += 64) __builtin_prefetch(bytes + b);
}

// Adds, over the block, e = exp((x - max) * inv_temperature) to `sum` and e * (x - max) to `weighted`.
template <typename T, bool kWeighted>
VD_INLINE void block_sum(const T* x, int64_t count, float max, const Scale& scale, double& sum, double& weighted) {
    Floats s[kUnroll], w[kUnroll];
    for (int u = 0; u < kUnroll; ++u) s[u] = w[u] = Floats{};
    int64_t i = 0;
    for (; i + kStep <= count; i += kStep) {
        prefetch_step(x + i + kBlock);
        for (int u = 0; u < kUnroll; ++u) {
            Floats d = load(x + i + u * VD_LANES) - max;
            const Floats e = exp2_scaled(d, scale);
            s[u] += e;
            if (kWeighted) w[u] += e * d;
        }
    }
    for (; i < count; i += VD_LANES) {
        Floats d = load_up_to(x + i, count - i, -INFINITY) - max;
        const Floats e = exp2_scaled(d, scale);
        s[0] += e;
        if (kWeighted) w[0] += e * d;
    }
    for (int u = 1; u < kUnroll; ++u) {
        s[0] += s[u];
        w[0] += w[u];
    }
    sum += horizontal_sum(s[0]);
    if (kWeighted) weighted += horizontal_sum(w[0]);
}

// p = exp((x - max) * inv_temperature) * factor. `p` may be `x`: every vector is read before it is written.
template <typename T, typename P>
VD_INLINE void write_softmax(const T* x, P* p, int64_t count, float max, const Scale& scale, float factor) {
    int64_t i = 0;
    for (; i + kStep <= count; i += kStep)
        for (int u = 0; u < kUnroll; ++u) {
            Floats d = load(x + i + u * VD_LANES) - max;
            store(p + i + u * VD_LANES, exp2_scaled(d, scale) * factor);
        }
    for (; i < count; i += VD_LANES) {
        Floats d = load_up_to(x + i, count - i, -INFINITY) - max;
        store_up_to(p + i, exp2_scaled(d, scale) * factor, count - i);
    }
}

// With z = x * inv_temperature and m = max z: lse = m + log sum exp(z - m), logp = z[target] - lse and
// entropy = lse - sum softmax(z) * z = log sum exp(z - m) - (sum exp(z - m) (z - m)) / (sum exp(z - m)).
// Differences are taken before scaling, and the ends of the sums in fp64, so large logits cost no accuracy.
template <typename T, typename P, bool kEntropy>
VD_TARGET static void row(const RowsArgs& args, int64_t index) {
    const T* x = static_cast<const T*>(args.logits) + index * args.row_stride;
    const int64_t v = args.v, target = args.targets[index];
    const double inv_temperature = args.inv_temperature;
    const Scale scale = scale_of(inv_temperature);
    const double target_logit = widen(x[target]);  // read now: P may overwrite it

    float max = -INFINITY;
    double sum = 0, weighted = 0;
    for (int64_t start = 0; start < v; start += kBlock) {
        const int64_t count = v - start < kBlock ? v - start : kBlock;
        const float block = block_max(x + start, count);
        if (block > max) {
            if (sum != 0) {
                const double shift = static_cast<double>(max) - block, decay = std::exp(shift * inv_temperature);
                weighted = (weighted + sum * shift) * decay;
                sum *= decay;
            }
            max = block;
        }
        // Until the first finite logit any reference will do: the sums stay zero (or become NaN).
        block_sum<T, kEntropy>(x + start, count, max == -INFINITY ? 0.0f : max, scale, sum, weighted);
    }

    const double log_sum = std::log(sum);
    const double logp = (target_logit - max) * inv_temperature - log_sum;
    args.logp[index] = static_cast<float>(logp);
    if (args.lse) args.lse[index] = static_cast<float>(max * inv_temperature + log_sum);
    if (kEntropy) args.entropy[index] = static_cast<float>(log_sum - weighted / sum * inv_temperature);
    if (args.p) {
        P* p = static_cast<P*>(args.p) + index * args.p_row_stride;
        if (sum > 0 && sum < INFINITY) {
            write_softmax(x, p, v, max, scale, static_cast<float>(1 / sum));
            narrow(p + target, static_cast<float>(std::expm1(logp)));  // p - 1 without cancellation
        } else {  // NaN or +inf among the logits, or nothing but -inf
            for (int64_t i = 0; i < v; ++i) narrow(p + i, NAN);
        }
    }
}

template <typename T, typename P>
VD_TARGET static void row_of(const RowsArgs& args, int64_t index) {
    args.entropy ? row<T, P, true>(args, index) : row<T, P, false>(args, index);
}

static RowFunction choose(DType logits, DType p) {
    if (logits == DType::float32) return p == DType::float32 ? row_of<float, float> : row_of<float, uint16_t>;
    return p == DType::float32 ? row_of<uint16_t, float> : row_of<uint16_t, uint16_t>;
}
