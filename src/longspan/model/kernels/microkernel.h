// The innermost loop of matrix products in vector registers.

#pragma once

#include "common.h"

#define ROWS 6    // of a left factor, by
#define COLUMNS 4 // vectors of 16 columns of a right one: 24 vectors of sums stay in registers, with factors beside them

enum { BFLOAT16, INT8, FLOAT32 };

// A group is what one 32-bit lane holds: 2 numbers of bfloat16, 4 integers of 8 bits, or one float32. The left factor's
// integers are unsigned, the right one's signed. Sums are float32, or 32-bit integers, which are exact.
INLINE __m512i add_product(__m512i sum, __m512i left, __m512i right, const int kind) {
  if (kind == INT8) return _mm512_dpbusd_epi32(sum, left, right);
  if (kind == FLOAT32) return (__m512i)_mm512_fmadd_ps((__m512)left, (__m512)right, (__m512)sum);
  return (__m512i)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
}

// out = left @ right, for `rows` rows by 16 * `columns` columns. A row of `left` has `left_stride` bytes, one of `out`
// `out_stride`; a vector of `right` has one group of 16 columns, the next group follows at `step` bytes, the next 16
// columns at `column_stride`.
INLINE void multiply_tile(const int rows, const int columns, const int kind, const char *left, long left_stride,
                          const char *right, long column_stride, long step, long groups, char *out, long out_stride) {
  __m512i sums[ROWS][COLUMNS]; // of constant size: others stay in memory
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) sums[i][j] = _mm512_setzero_si512();
  for (long g = 0; g < groups; g++) {
    __m512i factor[COLUMNS];
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) factor[j] = _mm512_load_si512(right + g * step + j * column_stride);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      __m512i x = _mm512_set1_epi32(*(const int32_t *)(left + i * left_stride + g * 4));
#pragma GCC unroll 8
      for (int j = 0; j < columns; j++) sums[i][j] = add_product(sums[i][j], x, factor[j], kind);
    }
  }
#pragma GCC unroll 16
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) _mm512_store_si512(out + i * out_stride + j * 64, sums[i][j]);
}

// The same for `rows` from 1 to ROWS that are not known in advance.
INLINE void multiply_tile_of(long rows, const int columns, const int kind, const char *left, long left_stride,
                             const char *right, long column_stride, long step, long groups, char *out,
                             long out_stride) {
#define CASE(n)                                                                                             \
  case n:                                                                                                   \
    multiply_tile(n, columns, kind, left, left_stride, right, column_stride, step, groups, out, out_stride); \
    break;
  switch (rows) {
    CASE(6)
    CASE(5)
    CASE(4)
    CASE(3)
    CASE(2)
    CASE(1)
  }
#undef CASE
}
