// The activation functions of feed-forward blocks.

#pragma once

#include "common.h"

enum { NONE = -1, SILU, GELU, GELU_TANH, RELU };

// What is `coarse` errs by 1e-4 of its value at most: a twentieth of what bfloat16 rounds away.

INLINE f32x16 exp2_of(f32x16 x, const int coarse) { return coarse ? exp2_coarse(x) : exp2_fine(x); }

INLINE f32x16 sigmoid(f32x16 x, const int coarse) {  // 1 / (1 + 2^(-x log2 e)), and 0 where that power overflows
  f32x16 power = exp2_of(_mm512_max_ps(_mm512_mul_ps(x, spread(-1.44269504f)), spread(-126.0f)), coarse);
  f32x16 sum = _mm512_add_ps(spread(1.0f), _mm512_min_ps(power, spread(1e38f)));
  return coarse ? _mm512_rcp14_ps(sum) : reciprocal(sum);
}

// Abramowitz and Stegun, 7.1.26: erf to 1.5e-7.
INLINE f32x16 erf_of(f32x16 x, const int coarse) {
  f32x16 size = _mm512_abs_ps(x), t = reciprocal(_mm512_fmadd_ps(size, spread(0.3275911f), spread(1.0f)));
  f32x16 p = _mm512_fmadd_ps(spread(1.061405429f), t, spread(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, spread(1.421413741f));
  p = _mm512_fmadd_ps(p, t, spread(-0.284496736f));
  p = _mm512_mul_ps(_mm512_fmadd_ps(p, t, spread(0.254829592f)), t);
  f32x16 power = _mm512_max_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), spread(-1.44269504f)), spread(-126.0f));
  power = exp2_of(power, coarse);
  f32x16 erf = _mm512_fnmadd_ps(p, power, spread(1.0f));
  __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32((int)0x80000000));
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(erf), sign));
}

INLINE f32x16 activation(f32x16 x, const int kind, const int coarse) {
  switch (kind) {
    case SILU:
      return _mm512_mul_ps(x, sigmoid(x, coarse));
    case GELU:
      x = _mm512_mul_ps(x, spread(0.5f));
      return _mm512_fmadd_ps(x, erf_of(_mm512_mul_ps(x, spread(1.41421356f)), coarse), x);
    case GELU_TANH: {  // 0.5 (1 + tanh(u)) is sigmoid(2 u)
      f32x16 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), spread(0.044715f), spread(1.0f));
      return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(_mm512_mul_ps(x, cubic), spread(1.59576912f)), coarse));
    }
    default:
      return _mm512_max_ps(x, _mm512_setzero_ps());
  }
}
