// Vectors of VD_LANES floats. each_isa.inl includes this file once per instruction set, each time in a namespace of its
// own with VD_TARGET (a target attribute) and VD_LANES (floats per vector) defined. Every function carries the attribute
// itself, as templates do not inherit it from a pragma.

#define VD_INLINE VD_TARGET __attribute__((always_inline)) inline

typedef float Floats __attribute__((vector_size(VD_LANES * 4)));
typedef uint32_t Words __attribute__((vector_size(VD_LANES * 4)));
typedef uint16_t Halves __attribute__((vector_size(VD_LANES * 2)));

VD_INLINE Floats splat(float x) { return x - Floats{}; }

VD_INLINE Floats load(const float* x) {
    Floats v;
    __builtin_memcpy(&v, x, sizeof v);
    return v;
}

VD_INLINE Floats load(const uint16_t* x) {
    Halves h;
    __builtin_memcpy(&h, x, sizeof h);
    return (Floats)(__builtin_convertvector(h, Words) << 16);
}

VD_INLINE void store(float* x, Floats v) { __builtin_memcpy(x, &v, sizeof v); }

// To bfloat16, nearest or even. Not for NaN: see float_to_bf16.
VD_INLINE void store(uint16_t* x, Floats v) {
    const Words bits = (Words)v;
    const Halves h = __builtin_convertvector((bits + 0x7fff + ((bits >> 16) & 1)) >> 16, Halves);
    __builtin_memcpy(x, &h, sizeof h);
}

VD_INLINE float widen(float x) { return x; }
VD_INLINE float widen(uint16_t x) { return bf16_to_float(x); }
VD_INLINE void narrow(float* x, float v) { *x = v; }
VD_INLINE void narrow(uint16_t* x, float v) { *x = float_to_bf16(v); }

// The larger of two; b where either is NaN. One maximum instruction on x86.
VD_INLINE Floats larger(Floats a, Floats b) { return a > b ? a : b; }

// The base-2 exponent's factor, inv_temperature * log2(e), to twice fp32's precision: an error in it would be a
// small change of temperature, which no averaging over the row takes away.
struct Scale {
    float high, low;
    float lowest;  // exp2 below it is 0: -127 / high
};

VD_INLINE Scale scale_of(double inv_temperature) {
    const double scale = inv_temperature * 1.4426950408889634;
    const float high = static_cast<float>(scale);
    return {high, static_cast<float>(scale - high), -127.0f / high};
}

// 2^(d * scale) for d <= 0, to about 1 ulp. Results that are not normal floats, below 2^-126.5, are 0; NaN gives
// NaN. `d` is held above the bound, so that the caller may form e * d without 0 * -inf.
//
// 2^y = 2^k * 2^f, k = round(y), |f| <= 1/2. Adding `magic` rounds y to an integer and leaves k + 127, the exponent
// field of 2^k, in the low bits; k = -127 makes that factor 0. The polynomial is the minimax fit of 2^f with 2^0 = 1
// (relative error 3e-9).
VD_INLINE Floats exp2_scaled(Floats& d, const Scale& scale) {
    constexpr float magic = 12582912.0f + 127.0f;  // 1.5 * 2^23
    d = larger(splat(scale.lowest), d);
    const Floats shifted = d * scale.high + magic;
    const Floats k = shifted - magic;
    Floats f = d * scale.high - k;
    f = d * scale.low + f;
    Floats p = f * 1.5594678e-4f + 1.3406644e-3f;
    p = p * f + 9.6176928e-3f;
    p = p * f + 5.5503104e-2f;
    p = p * f + 2.4022652e-1f;
    p = p * f + 6.9314724e-1f;
    p = p * f + 1.0f;
    return p * (Floats)((Words)shifted << 23);
}

VD_INLINE float horizontal_max(Floats v) {
    float m = v[0];
    for (int i = 1; i < VD_LANES; ++i) m = v[i] > m ? v[i] : m;
    return m;
}

VD_INLINE double horizontal_sum(Floats v) {
    double s = 0;
    for (int i = 0; i < VD_LANES; ++i) s += v[i];
    return s;
}

// Vectors at the end of a row, where fewer than VD_LANES elements may be left: the others read as `missing`.
template <typename T>
VD_INLINE Floats load_up_to(const T* x, int64_t count, float missing) {
    if (count >= VD_LANES) return load(x);
    float buffer[VD_LANES];
    for (int i = 0; i < VD_LANES; ++i) buffer[i] = i < count ? widen(x[i]) : missing;
    return load(buffer);
}

template <typename T>
VD_INLINE void store_up_to(T* x, Floats v, int64_t count) {
    if (count >= VD_LANES) return store(x, v);
    for (int i = 0; i < count; ++i) narrow(x + i, v[i]);
}

// Two vectors of segments of 2 S lanes as one of segments of S lanes: each segment's halves added, a's before b's.
template <int S>
constexpr int first_half(int lane) {
    constexpr int segments = VD_LANES / (2 * S);  // of a vector
    const int segment = lane / S;
    return segment / segments * VD_LANES + segment % segments * 2 * S + lane % S;
}

template <int S, int kOffset, int... kLane>
VD_INLINE Floats pick(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, first_half<S>(kLane) + kOffset...);
#else
    return __builtin_shuffle(a, b, Words{static_cast<uint32_t>(first_half<S>(kLane) + kOffset)...});
#endif
}

template <int S>
VD_INLINE Floats add_halves(Floats a, Floats b) {
    using Lanes = std::make_integer_sequence<int, VD_LANES>;
    return pick<S, 0>(a, b, Lanes{}) + pick<S, S>(a, b, Lanes{});
}

// The sums of four vectors, in the first four lanes; each in the order of a tree, halves onto each other, so that its
// bits do not depend on the other three.
VD_INLINE Floats horizontal_sums(Floats a, Floats b, Floats c, Floats d) {
    Floats sums = add_halves<VD_LANES / 4>(add_halves<VD_LANES / 2>(a, b), add_halves<VD_LANES / 2>(c, d));
    if constexpr (VD_LANES >= 8) sums = add_halves<VD_LANES / 8>(sums, sums);
    if constexpr (VD_LANES >= 16) sums = add_halves<VD_LANES / 16>(sums, sums);
    return sums;
}
