/* Products of a few rows with a stored weight: a decoded token reads every weight once, so this is about reading fast.
 *
 * Plain loops, which the compiler turns into vector instructions; quant_lite/kernels.py builds and calls them. Each has a
 * twin in PyTorch's operators, which it is tested against.
 *
 * Shapes, all row-major and without gaps: w (N, K), x (T, K), y (T, N), scale (N).
 * The threads share the N rows of w; a row of w is read from memory once and used for all T rows of x.
 */
#include <float.h>
#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

typedef ptrdiff_t size;

/* y = scale * sum_k w x: int8 weights, float activations. */
void int8_float(const int8_t *restrict w, const float *restrict scale, const float *restrict x, float *restrict y,
                size N, size K, size T) {
#pragma omp parallel for schedule(static)
    for (size n = 0; n < N; n++)
        for (size t = 0; t < T; t++) {
            const int8_t *row = w + n * K;
            const float *in = x + t * K;
            float sum = 0;
            for (size k = 0; k < K; k++) sum += (float)row[k] * in[k];
            y[t * N + n] = sum * scale[n];
        }
}

/* q = round(x / s) + 128 with s = max|x| / 127 for each row, rounded up to float32 before anything is divided by it.
 * Returns whether all of x is finite. */
static int quantize_rows(const float *restrict x, uint8_t *restrict q, float *restrict s, size T, size K) {
    for (size t = 0; t < T; t++) {
        const float *in = x + t * K;
        float most = 0;
        int bad = 0;
        for (size k = 0; k < K; k++) {
            float magnitude = fabsf(in[k]);
            most = magnitude > most ? magnitude : most;
            bad |= !(magnitude <= FLT_MAX);
        }
        if (bad) return 0;
        double exact = (double)most / 127.0;
        float step = (float)exact;
        if ((double)step < exact) step = nextafterf(step, INFINITY);
        if (most == 0) step = 1;
        s[t] = step;
        for (size k = 0; k < K; k++) {
            float r = rintf(in[k] / step); /* to even */
            r = r > 127 ? 127 : r < -127 ? -127 : r;
            q[t * K + k] = (uint8_t)(int)(r + 128);
        }
    }
    return 1;
}

/* y = scale * s * sum_k w (q - 128): int8 weights, activations quantized here to 8 bits a row ("W8A8").
 *
 * Unsigned times signed bytes, summed in int32, is one instruction (vpdpbusd) on many processors; signed times signed is
 * not. So q is made unsigned, and 128 sum_k w is taken out again, that sum by the same instruction with ones for q.
 * |w q| < 2^15, so K may be up to 65,536.
 * Returns 0, 1 where there is no memory for q, 2 where x is not finite. */
int int8_int8(const int8_t *restrict w, const float *restrict scale, const float *restrict x, float *restrict y, size N,
              size K, size T) {
    uint8_t *q = malloc((size_t)((T + 1) * K));
    float *s = malloc(sizeof(float) * (size_t)T);
    int failed = q == NULL || s == NULL ? 1 : quantize_rows(x, q, s, T, K) ? 0 : 2;
    if (!failed) {
        uint8_t *ones = q + T * K;
        for (size k = 0; k < K; k++) ones[k] = 1;
#pragma omp parallel for schedule(static)
        for (size n = 0; n < N; n++)
            for (size t = 0; t < T; t++) {
                const int8_t *row = w + n * K;
                const uint8_t *in = q + t * K;
                int32_t sum = 0, plain = 0;
                for (size k = 0; k < K; k++) {
                    sum += (int)row[k] * (int)in[k];
                    plain += (int)row[k] * (int)ones[k];
                }
                y[t * N + n] = (float)(sum - 128 * plain) * (scale[n] * s[t]);
            }
    }
    free(q);
    free(s);
    return failed;
}

/* y = sum_k w x: bfloat16 weights, which are the upper halves of float32, float activations. */
void bfloat16_float(const uint16_t *restrict w, const float *restrict x, float *restrict y, size N, size K, size T) {
#pragma omp parallel for schedule(static)
    for (size n = 0; n < N; n++)
        for (size t = 0; t < T; t++) {
            const uint16_t *row = w + n * K;
            const float *in = x + t * K;
            float sum = 0;
            for (size k = 0; k < K; k++) {
                union { uint32_t bits; float value; } number = {(uint32_t)row[k] << 16};
                sum += number.value * in[k];
            }
            y[t * N + n] = sum;
        }
}
