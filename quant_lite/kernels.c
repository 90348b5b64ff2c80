/* Products of a few rows with a stored weight: a decoded token reads every weight once, so this is about reading fast. For many
 * rows PyTorch multiplies, and quantize_rows and scale_sums do what comes before and after.
 *
 * Plain loops, which the compiler turns into vector instructions; quant_lite/kernels.py builds and calls them. Each has a
 * twin in PyTorch's operators, which it is tested against.
 *
 * Shapes, all row-major and without gaps: w (N, K), x (T, K), y (T, N); scale (N, G), one for each `group` neighbours of a
 * row, of which the last may be fewer (group = K: one a row); zero (N, G), the values that stand for 0, or NULL: all are 0.
 * x and y are float32, or bfloat16 where `half` is not 0.
 * The threads share the N rows of w; a row of w is read from memory once and used for all T rows of x.
 * All return 0, or 1 where there is no memory for x on the way, or 2 where x must be finite and is not.
 */
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef ptrdiff_t size;

static inline uint32_t bits_of(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static inline float value_of(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

/* bfloat16 is the upper half of float32; narrowing rounds to even. */
static inline float widen(uint16_t half) { return value_of((uint32_t)half << 16); }

static inline uint16_t narrow(float value) {
    uint32_t bits = bits_of(value);
    return value == value ? (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) : 0x7fc0;
}

static inline void put(void *y, size at, float value, int half) {
    if (half)
        ((uint16_t *)y)[at] = narrow(value);
    else
        ((float *)y)[at] = value;
}

/* Memory for `bytes` at the start of a cache line, to be freed. */
static void *lines(size bytes) { return aligned_alloc(64, (size_t)(bytes + 127) / 64 * 64); }

/* The rows as float32: x itself, or a copy to be freed. */
static float *as_float(const void *x, size count, int half) {
    if (!half) return (float *)x;
    float *wide = lines((size)sizeof(float) * count);
    for (size i = 0; wide && i < count; i++) wide[i] = widen(((const uint16_t *)x)[i]);
    return wide;
}

static inline size least(size a, size b) { return a < b ? a : b; }

/* Ask memory for what comes AHEAD of some bytes of w that are about to be used: so far that it has come by then, so near that
 * the nearest cache (32 KB or more) still has it. A core that runs into memory with loads alone leaves its own prefetcher no
 * room, and reads slower; so products go by blocks of BLOCK bytes. */
#define AHEAD 8192
#define BLOCK 1024
static inline void ask(const void *w, size bytes) {
    for (size i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)w + AHEAD + i);
}

/* Sums of floats are kept in LANES parts, because a compiler may not take them in another order on its own. */
#define LANES 64
static inline float sum_of_lanes(const float *part) {
    float sum = 0;
    for (int i = 0; i < LANES; i++) sum += part[i];
    return sum;
}

/* y = sum over groups of scale * sum_k (w - zero) x: int8 weights, float activations. */
int int8_float(const int8_t *restrict w, const float *restrict scale, const int8_t *restrict zero, const void *restrict x,
               void *restrict y, size N, size K, size T, size group, int half) {
    float *in = as_float(x, T * K, half);
    size G = (K + group - 1) / group;
    if (!in) return 1;
#pragma omp parallel for schedule(static)
    for (size n = 0; n < N; n++)
        for (size t = 0; t < T; t++) {
            const int8_t *row = w + n * K;
            const float *from = in + t * K;
            float total = 0;
            for (size g = 0; g < G; g++) {
                size end = least(K, (g + 1) * group);
                int z = zero ? zero[n * G + g] : 0;
                float part[LANES] = {0}, rest = 0;
                size k = g * group;
                for (; k + LANES <= end; k += LANES) {
                    ask(row + k, LANES);
                    for (int i = 0; i < LANES; i++) part[i] += (float)(row[k + i] - z) * from[k + i];
                }
                for (; k < end; k++) rest += (float)(row[k] - z) * from[k];
                total += (rest + sum_of_lanes(part)) * scale[n * G + g];
            }
            put(y, t * N + n, total, half);
        }
    if (half) free(in);
    return 0;
}

/* max|x| of a row, or -1 where some of x is not finite. Without their sign floats are in the order of their bits, infinity
 * and NaN last. */
static float most_of(const float *restrict x, size K) {
    uint32_t most = 0;
    for (size k = 0; k < K; k++) {
        uint32_t magnitude = bits_of(x[k]) & 0x7fffffff;
        most = magnitude > most ? magnitude : most;
    }
    return most < 0x7f800000 ? value_of(most) : -1;
}

/* One row: q = round(x / s) from `lowest` to 127, with s = max|x| / 127 rounded up to float32 before anything is divided by it,
 * or, where `lowest` is -128, max|x| / 127.5 to the nearest; or with an s that is given (`fixed`), past whose range q
 * saturates. Returns s, or -1 where some of x is not finite. */
static float quantize_row(const float *restrict x, int8_t *restrict q, size K, float fixed, int lowest) {
    float most = most_of(x, K);
    if (most < 0) return -1;
    double exact = (double)most / ((127 - lowest) / 2.0);
    float s = (float)exact;
    if ((double)s < exact && (lowest == -127 || s < FLT_MIN)) s = nextafterf(s, INFINITY);
    if (most == 0) s = 1;
    if (fixed > 0) s = fixed;
    for (size k = 0; k < K; k++) {
        float r = rintf(x[k] / s); /* to even */
        r = r > 127 ? 127 : r < lowest ? lowest : r;
        q[k] = (int8_t)(int)r;
    }
    return s;
}

/* q and s of each row of x (T, K). */
int quantize_rows(const void *restrict x, int8_t *restrict q, float *restrict s, size T, size K, int half, float fixed,
                  int lowest) {
    int failed = 0;
#pragma omp parallel for schedule(static) reduction(| : failed) if (T > 4)
    for (size t = 0; t < T; t++) {
        float *in = as_float((const char *)x + t * K * (half ? 2 : 4), K, half);
        s[t] = in ? quantize_row(in, q + t * K, K, fixed, lowest) : 0;
        failed |= !in ? 1 : s[t] < 0 ? 2 : 0;
        if (half) free(in);
    }
    return failed & 1 ? 1 : failed;
}

/* How far the three bytes of a number lie from each other below: a third of 4096 bytes past a multiple of it. All that lies a
 * multiple of 4096 apart shares a few places of the nearest cache, and a long row of x would drive itself out of it. */
static inline size apart(size K) { return (K + 4095) / 4096 * 4096 + 1344; }

/* Three bytes a number, q = low + 256 middle + 65536 high, each from -128 to 127, with q = round(x / s) and
 * s = max|x| / (2^23 - 2^16): (3, apart(K)) for each row. Returns whether all of x is finite. */
static int split_rows(const float *restrict x, int8_t *restrict q, double *restrict s, size T, size K) {
    for (size t = 0; t < T; t++) {
        const float *in = x + t * K;
        int8_t *low = q + 3 * t * apart(K), *middle = low + apart(K), *high = middle + apart(K);
        float most = most_of(in, K);
        if (most < 0) return 0;
        double steps = most > 0 ? 8323072.0 / (double)most : 0;
        s[t] = (double)most / 8323072.0;
        for (size k = 0; k < K; k++) {
            int32_t whole = (int32_t)rint((double)in[k] * steps);
            low[k] = (int8_t)whole;
            int32_t rest = (whole - low[k]) >> 8;
            middle[k] = (int8_t)rest;
            high[k] = (int8_t)((rest - middle[k]) >> 8);
        }
    }
    return 1;
}

static inline int32_t sum_of(const int8_t *restrict q, size count) {
    int32_t sum = 0;
    for (size k = 0; k < count; k++) sum += q[k];
    return sum;
}

/* w + 128 as an unsigned byte. Unsigned times signed bytes, summed in int32, is one instruction (vpdpbusd) on many
 * processors; signed times signed is not. So products are of w + 128, and 128 sum_k q is taken out again, which is the same
 * for all rows of w. |(w + 128) q| < 2^15, so that 65,536 of them can be summed. */
static inline int up(int8_t w) { return (uint8_t)(w ^ -128); }

/* y = s * sum over groups of scale * sum_k w q: int8 weights, activations quantized here to 8 bits a row ("W8A8"). */
int int8_int8(const int8_t *restrict w, const float *restrict scale, const void *restrict x, void *restrict y, size N,
              size K, size T, size group, int half, float fixed, int lowest) {
    size G = (K + group - 1) / group;
    float *s = lines((size)sizeof(float) * T);
    int8_t *q = lines(T * K);
    int32_t *lift = lines((size)sizeof(int32_t) * T * G);
    int failed = !s || !q || !lift ? 1 : quantize_rows(x, q, s, T, K, half, fixed, lowest);
    if (!failed) {
        for (size i = 0; i < T * G; i++) {
            size t = i / G, start = i % G * group;
            lift[i] = 128 * sum_of(q + t * K + start, least(K - start, group));
        }
#pragma omp parallel for schedule(static)
        for (size n = 0; n < N; n++)
            for (size t = 0; t < T; t++) {
                float total = 0;
                for (size g = 0; g < G; g++) {
                    size start = g * group, count = least(K - start, group);
                    const int8_t *row = w + n * K + start, *from = q + t * K + start;
                    int32_t sum = 0;
                    for (size b = 0; b < count; b += BLOCK) {
                        size e = least(count, b + BLOCK);
                        ask(row + b, e - b);
                        for (size k = b; k < e; k++) sum += up(row[k]) * (int)from[k];
                    }
                    total += (float)(sum - lift[t * G + g]) * scale[n * G + g];
                }
                put(y, t * N + n, total * s[t], half);
            }
    }
    free(s);
    free(q);
    free(lift);
    return failed;
}

/* y as int8_float, with x cut to 24 bits a row: x = s q, s = max|x| / (2^23 - 2^16).
 *
 * A float product needs each weight made a float first, which takes longer than to read it. The three bytes of q are three
 * products of bytes, exact, one instruction for 64 weights where the processor has it (see up). What is cut off x is at most
 * s/2, 2^-24 of the row's largest number. */
int int8_fixed(const int8_t *restrict w, const float *restrict scale, const int8_t *restrict zero, const void *restrict x,
               void *restrict y, size N, size K, size T, size group, int half) {
    size G = (K + group - 1) / group, P = apart(K);
    float *in = as_float(x, T * K, half);
    double *s = lines((size)sizeof(double) * T), *lift = lines((size)sizeof(double) * T * G);
    int8_t *q = lines(3 * T * P);
    int failed = !in || !s || !q || !lift ? 1 : split_rows(in, q, s, T, K) ? 0 : 2;
    if (!failed) {
        for (size i = 0; i < T * G; i++) {
            size t = i / G, start = i % G * group, count = least(K - start, group);
            const int8_t *low = q + 3 * t * P + start;
            lift[i] = 128.0 * sum_of(low, count) + 32768.0 * sum_of(low + P, count) + 8388608.0 * sum_of(low + 2 * P, count);
        }
#pragma omp parallel for schedule(static)
        for (size n = 0; n < N; n++)
            for (size t = 0; t < T; t++) {
                double total = 0;
                for (size g = 0; g < G; g++) {
                    size start = g * group, count = least(K - start, group);
                    const int8_t *row = w + n * K + start;
                    const int8_t *low = q + 3 * t * P + start, *middle = low + P, *high = middle + P;
                    int32_t of_low = 0, of_middle = 0, of_high = 0;
                    for (size b = 0; b < count; b += BLOCK) {
                        size e = least(count, b + BLOCK);
                        ask(row + b, e - b);
                        for (size k = b; k < e; k++) {
                            of_low += up(row[k]) * (int)low[k];
                            of_middle += up(row[k]) * (int)middle[k];
                            of_high += up(row[k]) * (int)high[k];
                        }
                    }
                    double off = lift[t * G + g]; /* 128 sum_k q; what the zero point adds to it is exact, too */
                    if (zero) off += off / 128 * zero[n * G + g];
                    double sum = of_low + 256.0 * of_middle + 65536.0 * of_high - off;
                    total += sum * scale[n * G + g];
                }
                put(y, t * N + n, (float)(total * s[t]), half);
            }
    }
    if (half) free(in);
    free(s);
    free(lift);
    free(q);
    return failed == 2 ? int8_float(w, scale, zero, x, y, N, K, T, group, half) : failed; /* NaN and infinity spread as ever */
}

static inline float number(const void *x, size at, int half) {
    return half ? widen(((const uint16_t *)x)[at]) : ((const float *)x)[at];
}

/* sum_k w x of one row. x is widened each time: in 16 bits a long row of it stays in the cache nearest to the core. */
static inline float bfloat16_row(const uint16_t *restrict w, const void *restrict x, size from, size K, int half) {
    float part[LANES] = {0}, rest = 0;
    size k = 0;
    for (; k + LANES <= K; k += LANES) {
        ask(w + k, 2 * LANES);
        for (int i = 0; i < LANES; i++) part[i] += widen(w[k + i]) * number(x, from + k + i, half);
    }
    for (; k < K; k++) rest += widen(w[k]) * number(x, from + k, half);
    return rest + sum_of_lanes(part);
}

/* y = sum_k w x: bfloat16 weights, float activations. */
int bfloat16_float(const uint16_t *restrict w, const void *restrict x, void *restrict y, size N, size K, size T,
                   int half) {
#pragma omp parallel for schedule(static)
    for (size n = 0; n < N; n++)
        for (size t = 0; t < T; t++) {
            const uint16_t *row = w + n * K; /* `half` as a constant: one loop for each */
            put(y, t * N + n, half ? bfloat16_row(row, x, t * K, K, 1) : bfloat16_row(row, x, t * K, K, 0), half);
        }
    return 0;
}

/* y = s * scale * sums for some columns of y (T, N): sums (n, T) are those of n rows of a weight, scale (n) theirs. */
void scale_sums(const int32_t *restrict sums, const float *restrict scale, const float *restrict s, void *restrict y, size n,
                size T, size N, int half) {
#pragma omp parallel for schedule(static)
    for (size t = 0; t < T; t += 16) /* by squares, because one of sums and y is read across its rows */
        for (size i = 0; i < n; i += 16)
            for (size r = t; r < least(t + 16, T); r++)
                for (size c = i; c < least(i + 16, n); c++)
                    put(y, r * N + c, (float)sums[c * T + r] * scale[c] * s[r], half);
}
