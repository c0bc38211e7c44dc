// Residual sum, norm and rounding in one pass.

#include "common.h"

// sum = h + y; norm = layer_norm(sum). h becomes the norm (or, under `prenorm`, the sum); the norm also goes to `x` in
// bfloat16, or to `q` in 8 bits. Without y the sum is h; without gamma the norm is the sum.
void combine(float *h, const uint16_t *values, const float *step, const float *middle, const float *sums,
             const float *bias, const float *gamma, const float *beta, float eps, int prenorm, long rows, long width,
             uint16_t *x, int8_t *q, float *q_step, float *q_middle, int threads) {
  const Product y = {values, step, middle, sums, bias, width};
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 8)
  for (long r = 0; r < rows; r++) {
    float row[width] ALIGNED;
    float *h_row = h + r * width;
    f32x16 total = _mm512_setzero_ps();
    for (long i = 0; i < width; i += LANES) {
      f32x16 v = _mm512_loadu_ps(h_row + i);
      if (values) v = _mm512_add_ps(v, restored(&y, r, i));
      total = _mm512_add_ps(total, v);
      _mm512_store_ps(row + i, v);
    }
    if (prenorm && values) memcpy(h_row, row, width * sizeof(float));
    if (gamma) {
      f32x16 mean = spread(_mm512_reduce_add_ps(total) / width), squares = _mm512_setzero_ps();
      for (long i = 0; i < width; i += LANES) {
        f32x16 v = _mm512_sub_ps(_mm512_load_ps(row + i), mean);
        squares = _mm512_fmadd_ps(v, v, squares);
      }
      f32x16 scale = spread(1.0f / __builtin_sqrtf(_mm512_reduce_add_ps(squares) / width + eps));
      for (long i = 0; i < width; i += LANES) {
        f32x16 v = _mm512_mul_ps(_mm512_sub_ps(_mm512_load_ps(row + i), mean), scale);
        v = _mm512_mul_ps(v, _mm512_loadu_ps(gamma + i));
        if (beta) v = _mm512_add_ps(v, _mm512_loadu_ps(beta + i));
        _mm512_store_ps(row + i, v);
      }
    }
    if (!prenorm) memcpy(h_row, row, width * sizeof(float));
    if (q)
      round_whole_row(row, width, q + r * width, q_step + r, q_middle + r);
    else if (x)
      for (long i = 0; i < width; i += LANES) store_narrow(x + r * width + i, _mm512_load_ps(row + i));
  }
}

// Rows of bfloat16 to 8-bit integers.
void round_rows(const uint16_t *x, long rows, long width, int8_t *q, float *q_step, float *q_middle, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 8)
  for (long r = 0; r < rows; r++) {
    float row[width] ALIGNED;
    for (long i = 0; i < width; i += LANES) _mm512_store_ps(row + i, widen(x + r * width + i));
    round_whole_row(row, width, q + r * width, q_step + r, q_middle + r);
  }
}
