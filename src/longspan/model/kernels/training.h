// What training's compiled passes share. A tensor is float32 or (`half`) bfloat16; what is computed is float32.

#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define ALIGNED __attribute__((aligned(64)))
#define INLINE static inline __attribute__((always_inline))

typedef __m512 f32x16;

INLINE f32x16 spread(float x) { return _mm512_set1_ps(x); }

INLINE f32x16 widen(const uint16_t *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

INLINE __m256i narrow(f32x16 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

// 16 numbers of a tensor, from number `i` on.
INLINE f32x16 load(const void *p, long i, int half) {
  return half ? widen((const uint16_t *)p + i) : _mm512_loadu_ps((const float *)p + i);
}

INLINE void store(void *p, long i, f32x16 x, int half) {
  if (half)
    _mm256_storeu_si256((__m256i *)((uint16_t *)p + i), narrow(x));
  else
    _mm512_storeu_ps((float *)p + i, x);
}

// 2^x, to 8e-8 of its value; for bfloat16 to 8e-5, a twentieth of what that rounds away.
INLINE f32x16 exp2_of(f32x16 x, int half) {
  f32x16 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n), p;
  if (half) {
    p = _mm512_fmadd_ps(spread(0.0551258475f), f, spread(0.242607312f));
    p = _mm512_fmadd_ps(p, f, spread(0.693269418f));
    p = _mm512_fmadd_ps(p, f, spread(0.999928541f));
  } else {
    p = _mm512_fmadd_ps(spread(0.00132712284f), f, spread(0.00967549707f));
    p = _mm512_fmadd_ps(p, f, spread(0.0555072947f));
    p = _mm512_fmadd_ps(p, f, spread(0.240221208f));
    p = _mm512_fmadd_ps(p, f, spread(0.693146957f));
    p = _mm512_fmadd_ps(p, f, spread(1.0f));
  }
  return _mm512_scalef_ps(p, n);
}
