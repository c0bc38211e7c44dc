// What lies between the matrix products of training, each in one pass over memory and each way: residual sum and norm;
// activation and gate. For x86-64 with AVX-512 and its bfloat16; built and loaded by compiled_training.py.
//
// Every row is computed by itself, and sums over rows are of blocks of a fixed size: nothing depends on the number of
// threads. Widths are multiples of 16.

#include "training.h"

// --- residual sum and norm -------------------------------------------------------------------------------------------

#define BLOCK 128 // rows whose part of the gradients of a norm's weights is one sum

// total = h + y, and its layer norm to `out`; if y is bfloat16 (`half`) also to `copy`, in bfloat16. The way back needs
// `total` and, of every row, mean and inverse deviation. `beta` may be NULL.
void add_norm(const float *h, const void *y, const float *gamma, const float *beta, float eps, long rows, long width,
              float *total, float *mean, float *scale, float *out, uint16_t *copy, int half, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 8)
  for (long r = 0; r < rows; r++) {
    float *row = total + r * width;
    f32x16 sum = _mm512_setzero_ps(), squares = _mm512_setzero_ps();
    for (long i = 0; i < width; i += LANES) {
      f32x16 v = _mm512_add_ps(_mm512_loadu_ps(h + r * width + i), load(y, r * width + i, half));
      sum = _mm512_add_ps(sum, v);
      _mm512_storeu_ps(row + i, v);
    }
    mean[r] = _mm512_reduce_add_ps(sum) / width;
    for (long i = 0; i < width; i += LANES) {
      f32x16 v = _mm512_sub_ps(_mm512_loadu_ps(row + i), spread(mean[r]));
      squares = _mm512_fmadd_ps(v, v, squares);
    }
    scale[r] = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / width + eps);
    for (long i = 0; i < width; i += LANES) {
      f32x16 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i), spread(mean[r])), spread(scale[r]));
      f32x16 shift = beta ? _mm512_loadu_ps(beta + i) : _mm512_setzero_ps();
      v = _mm512_fmadd_ps(v, _mm512_loadu_ps(gamma + i), shift);
      _mm512_storeu_ps(out + r * width + i, v);
      if (half) store(copy, r * width + i, v, 1);
    }
  }
}

// From the gradients of `out` and `copy` (either may be NULL) to that of the sum, in float32 and (`half`) in bfloat16,
// and, of every block of rows, to those of gamma and beta: `of_weights` has (blocks, 2, width).
void add_norm_back(const float *grad, const uint16_t *grad_copy, const float *gamma, const float *total,
                   const float *mean, const float *scale, long rows, long width, float *of_total, uint16_t *of_copy,
                   float *of_weights, int half, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static)
  for (long block = 0; block < (rows + BLOCK - 1) / BLOCK; block++) {
    float *of_gamma = of_weights + block * 2 * width, *of_beta = of_gamma + width;
    float row[width] ALIGNED, normed[width] ALIGNED;
    memset(of_gamma, 0, 2 * width * sizeof(float));
    for (long r = block * BLOCK; r < rows && r < (block + 1) * BLOCK; r++) {
      f32x16 sum = _mm512_setzero_ps(), projected = _mm512_setzero_ps();
      for (long i = 0; i < width; i += LANES) {
        long at = r * width + i;
        f32x16 g = grad ? _mm512_loadu_ps(grad + at) : _mm512_setzero_ps();
        if (grad_copy) g = _mm512_add_ps(g, load(grad_copy, at, 1));
        f32x16 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(total + at), spread(mean[r])), spread(scale[r]));
        _mm512_storeu_ps(of_gamma + i, _mm512_fmadd_ps(g, x, _mm512_loadu_ps(of_gamma + i)));
        _mm512_storeu_ps(of_beta + i, _mm512_add_ps(g, _mm512_loadu_ps(of_beta + i)));
        g = _mm512_mul_ps(g, _mm512_loadu_ps(gamma + i));
        sum = _mm512_add_ps(sum, g);
        projected = _mm512_fmadd_ps(g, x, projected);
        _mm512_store_ps(row + i, g);
        _mm512_store_ps(normed + i, x);
      }
      f32x16 least = spread(_mm512_reduce_add_ps(sum) / width), along = spread(_mm512_reduce_add_ps(projected) / width);
      for (long i = 0; i < width; i += LANES) {
        f32x16 g = _mm512_sub_ps(_mm512_load_ps(row + i), least);
        g = _mm512_mul_ps(_mm512_fnmadd_ps(_mm512_load_ps(normed + i), along, g), spread(scale[r]));
        _mm512_storeu_ps(of_total + r * width + i, g);
        if (half) store(of_copy, r * width + i, g, 1);
      }
    }
  }
}

// --- activation and gate ---------------------------------------------------------------------------------------------

enum { SILU, GELU };

INLINE f32x16 reciprocal(f32x16 x) { // one Newton step past the processor's 14 bits
  f32x16 r = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(r, _mm512_fnmadd_ps(x, r, spread(2.0f)));
}

INLINE f32x16 exp_of(f32x16 x) { return exp2_of(_mm512_max_ps(_mm512_mul_ps(x, spread(1.44269504f)), spread(-126.0f)), 0); }

INLINE f32x16 sigmoid(f32x16 x) { // 1 / (1 + e^-x), and 0 where that power overflows
  f32x16 power = exp_of(_mm512_sub_ps(_mm512_setzero_ps(), x));
  return reciprocal(_mm512_add_ps(spread(1.0f), _mm512_min_ps(power, spread(1e38f))));
}

// Abramowitz and Stegun, 7.1.26: erf to 1.5e-7. `power` is e^(-x^2).
INLINE f32x16 erf_of(f32x16 x, f32x16 power) {
  f32x16 t = reciprocal(_mm512_fmadd_ps(_mm512_abs_ps(x), spread(0.3275911f), spread(1.0f)));
  f32x16 p = _mm512_fmadd_ps(spread(1.061405429f), t, spread(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, spread(1.421413741f));
  p = _mm512_fmadd_ps(p, t, spread(-0.284496736f));
  p = _mm512_mul_ps(_mm512_fmadd_ps(p, t, spread(0.254829592f)), t);
  __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32((int)0x80000000));
  __m512i size = _mm512_castps_si512(_mm512_fnmadd_ps(p, power, spread(1.0f)));
  return _mm512_castsi512_ps(_mm512_or_si512(size, sign));
}

// The activation of `x`, and in `slope` its derivative.
INLINE f32x16 activation(f32x16 x, int kind, f32x16 *slope) {
  f32x16 one = spread(1.0f);
  if (kind == SILU) {
    f32x16 s = sigmoid(x), y = _mm512_mul_ps(x, s);
    *slope = _mm512_fmadd_ps(y, _mm512_sub_ps(one, s), s);
    return y;
  }
  f32x16 power = exp_of(_mm512_mul_ps(_mm512_mul_ps(x, x), spread(-0.5f)));
  f32x16 erf = erf_of(_mm512_mul_ps(x, spread(0.707106781f)), power);
  f32x16 part = _mm512_mul_ps(spread(0.5f), _mm512_add_ps(one, erf));
  *slope = _mm512_fmadd_ps(_mm512_mul_ps(x, spread(0.398942280f)), power, part);
  return _mm512_mul_ps(x, part);
}

INLINE void gate_rows(const void *up_gate, long rows, long width, void *out, int kind, int half, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 8)
  for (long r = 0; r < rows; r++)
    for (long i = 0; i < width; i += LANES) {
      f32x16 slope, acted = activation(load(up_gate, (2 * r + 1) * width + i, half), kind, &slope);
      store(out, r * width + i, _mm512_mul_ps(acted, load(up_gate, 2 * r * width + i, half)), half);
    }
}

INLINE void gate_rows_back(const void *up_gate, const void *grad, long rows, long width, void *out, int kind, int half,
                           int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 8)
  for (long r = 0; r < rows; r++)
    for (long i = 0; i < width; i += LANES) {
      long up = 2 * r * width + i, gate = up + width;
      f32x16 slope, acted = activation(load(up_gate, gate, half), kind, &slope), g = load(grad, r * width + i, half);
      store(out, up, _mm512_mul_ps(g, acted), half);
      store(out, gate, _mm512_mul_ps(_mm512_mul_ps(g, load(up_gate, up, half)), slope), half);
    }
}

#define EACH(CALL)                       \
  if (kind == SILU && half) CALL(SILU, 1);  \
  if (kind == SILU && !half) CALL(SILU, 0); \
  if (kind == GELU && half) CALL(GELU, 1);  \
  if (kind == GELU && !half) CALL(GELU, 0);

// up * act(gate), (rows, width), of (up, gate), (rows, 2 width).
void gate(const void *up_gate, long rows, long width, void *out, int kind, int half, int threads) {
#define CALL(KIND, HALF) gate_rows(up_gate, rows, width, out, KIND, HALF, threads)
  EACH(CALL)
#undef CALL
}

// From the gradient of that, (rows, width), to that of (up, gate).
void gate_back(const void *up_gate, const void *grad, long rows, long width, void *out, int kind, int half,
               int threads) {
#define CALL(KIND, HALF) gate_rows_back(up_gate, grad, rows, width, out, KIND, HALF, threads)
  EACH(CALL)
#undef CALL
}
