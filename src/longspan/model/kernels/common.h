// What all passes share: numbers of 16 bits in vectors of 16 lanes, powers of two, rows rounded to 8-bit integers, and how
// a matrix product is read.
//
// The passes are what lies between the encoder's matrix products, each in one pass over memory: residual sum, norm and
// rounding (norms.c); activation and gate (activation.c); attention with its rotation (attention.h). gemm.c has the
// products themselves, for processors without a matrix unit. For x86-64 with AVX-512; built and loaded by compiled.py.
//
// Matrices are row-major. Numbers of 16 bits are bfloat16. Rows are rounded to 8-bit integers from their smallest to
// their largest value: x = middle + step * integer. A product of such integers by a matrix library arrives as bfloat16,
// without what belongs to its row: it is step * product + middle * sums + bias, where `sums` has the sum of the weights
// of every column.
//
// Every row, and every sequence and head of attention, is computed by itself in one order of additions, so nothing
// depends on its neighbours or on the number of threads. Widths are multiples of 16, head sizes of 32.

#pragma once

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define TINY 1e-30f
#define ALIGNED __attribute__((aligned(64)))
#define INLINE static inline __attribute__((always_inline))

typedef __m512 f32x16;

static inline f32x16 widen(const uint16_t *p) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p)), 16));
}

static inline __m256i narrow(f32x16 x) { return (__m256i)_mm512_cvtneps_pbh(x); }

static inline void store_narrow(uint16_t *p, f32x16 x) { _mm256_storeu_si256((__m256i *)p, narrow(x)); }

static inline f32x16 spread(float x) { return _mm512_set1_ps(x); }

// 2^x, to 8e-8 of its value.
static inline f32x16 exp2_fine(f32x16 x) {
  f32x16 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
  f32x16 p = _mm512_fmadd_ps(spread(0.00132712284f), f, spread(0.00967549707f));
  p = _mm512_fmadd_ps(p, f, spread(0.0555072947f));
  p = _mm512_fmadd_ps(p, f, spread(0.240221208f));
  p = _mm512_fmadd_ps(p, f, spread(0.693146957f));
  p = _mm512_fmadd_ps(p, f, spread(1.0f));
  return _mm512_scalef_ps(p, n);
}

// 2^x, to 8e-5 of its value: a twentieth of what bfloat16 rounds away.
static inline f32x16 exp2_coarse(f32x16 x) {
  f32x16 n = _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC), f = _mm512_sub_ps(x, n);
  f32x16 p = _mm512_fmadd_ps(spread(0.0551258475f), f, spread(0.242607312f));
  p = _mm512_fmadd_ps(p, f, spread(0.693269418f));
  p = _mm512_fmadd_ps(p, f, spread(0.999928541f));
  return _mm512_scalef_ps(p, n);
}

// 1 / x, one Newton step past the processor's 14 bits.
static inline f32x16 reciprocal(f32x16 x) {
  f32x16 r = _mm512_rcp14_ps(x);
  return _mm512_mul_ps(r, _mm512_fnmadd_ps(x, r, spread(2.0f)));
}

// --- rows and products -------------------------------------------------------------------------------------------------

// The integer of a row's smallest value is -ZERO. The matrix unit's products take signed integers, gemm.c's unsigned ones.
#ifdef AMX
#define ZERO 128
#else
#define ZERO 0
#endif

// A row to 8-bit integers, from its smallest value to its largest.
static inline void round_row(const float *row, long width, float least, float most, int8_t *out, float *step,
                             float *middle) {
  float range = most - least > TINY ? most - least : TINY;
  f32x16 scale = spread(255.0f / range), from = spread(least);
  __m512i zero = _mm512_set1_epi32(ZERO);
  for (long i = 0; i < width; i += LANES) {
    f32x16 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i), from), scale);
    __m512i q = _mm512_sub_epi32(_mm512_cvtps_epi32(x), zero);
    _mm_storeu_si128((__m128i *)(out + i), ZERO ? _mm512_cvtsepi32_epi8(q) : _mm512_cvtusepi32_epi8(q));
  }
  *step = range / 255.0f;
  *middle = least + ZERO * *step;
}

static inline void round_whole_row(const float *row, long width, int8_t *out, float *step, float *middle) {
  f32x16 least = spread(3e38f), most = spread(-3e38f);
  for (long i = 0; i < width; i += LANES) {
    f32x16 x = _mm512_loadu_ps(row + i);
    least = _mm512_min_ps(least, x), most = _mm512_max_ps(most, x);
  }
  round_row(row, width, _mm512_reduce_min_ps(least), _mm512_reduce_max_ps(most), out, step, middle);
}

// A product and what its numbers lack: `step`, `middle` per row and `sums` per column, or all NULL; `bias` or NULL.
typedef struct {
  const uint16_t *values;
  const float *step, *middle, *sums, *bias;
  long width;
} Product;

// 16 numbers of row `r`, from column `i`.
static inline f32x16 restored(const Product *y, long r, long i) {
  f32x16 v = widen(y->values + r * y->width + i);
  if (y->step) {
    v = _mm512_mul_ps(v, spread(y->step[r]));
    v = _mm512_fmadd_ps(spread(y->middle[r]), _mm512_loadu_ps(y->sums + i), v);
  }
  return y->bias ? _mm512_add_ps(v, _mm512_loadu_ps(y->bias + i)) : v;
}
