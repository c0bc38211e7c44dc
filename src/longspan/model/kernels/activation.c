// Activation, gate and rounding in one pass.

#include "activation.h"

static inline __attribute__((always_inline)) void activate_rows(const Product *y, long rows, long inner, int kind,
                                                                int gated, uint16_t *x, int8_t *q, float *q_step,
                                                                float *q_middle, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 8)
  for (long r = 0; r < rows; r++) {
    float row[inner] ALIGNED;
    f32x16 least = spread(3e38f), most = spread(-3e38f);
    for (long i = 0; i < inner; i += LANES) {
      f32x16 v = activation(restored(y, r, gated ? inner + i : i), kind, 0);
      if (gated) v = _mm512_mul_ps(v, restored(y, r, i));
      if (!q) {
        store_narrow(x + r * inner + i, v);
        continue;
      }
      least = _mm512_min_ps(least, v), most = _mm512_max_ps(most, v);
      _mm512_store_ps(row + i, v);
    }
    if (q)
      round_row(row, inner, _mm512_reduce_min_ps(least), _mm512_reduce_max_ps(most), q + r * inner, q_step + r,
                q_middle + r);
  }
}

// act(y), or, gated, up * act(gate) of y = (up, gate); to `x` in bfloat16, or to `q` in 8 bits.
void activate(const uint16_t *values, const float *step, const float *middle, const float *sums, const float *bias,
              long rows, long inner, int kind, int gated, uint16_t *x, int8_t *q, float *q_step, float *q_middle,
              int threads) {
  const Product y = {values, step, middle, sums, bias, gated ? 2 * inner : inner};
#define CASE(KIND, GATED)                                                                                   \
  if (kind == KIND && gated == GATED) {                                                                     \
    activate_rows(&y, rows, inner, KIND, GATED, x, q, q_step, q_middle, threads);                           \
    return;                                                                                                 \
  }
  CASE(SILU, 1)
  CASE(GELU, 1)
  CASE(GELU, 0)
  CASE(GELU_TANH, 0)
  CASE(RELU, 0)
#undef CASE
}
