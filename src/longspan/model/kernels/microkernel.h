// The innermost loop of matrix products in vector registers.

#pragma once

#include "common.h"

enum { BFLOAT16, INT8 };

// A group is what one 32-bit lane holds: 2 numbers of bfloat16, or 4 integers of 8 bits. The left factor's integers are
// unsigned, the right one's signed. Sums are float32, or 32-bit integers, which are exact.
INLINE __m512i add_product(__m512i sum, __m512i left, __m512i right, const int kind) {
  if (kind == INT8) return _mm512_dpbusd_epi32(sum, left, right);
  return (__m512i)_mm512_dpbf16_ps((__m512)sum, (__m512bh)left, (__m512bh)right);
}

// sums += left @ right, for `rows` rows by 16 * `columns` columns that stay in registers: at most 24 vectors of sums, so
// that those of the factors fit beside them. A row of `left` has `left_stride` bytes; a vector of `right` has one group
// of 16 columns, the next group follows at `step` bytes, the next 16 columns at `column_stride` bytes.
INLINE void accumulate(const int rows, const int columns, const int kind, const char *left, long left_stride,
                       const char *right, long column_stride, long step, long groups, __m512i sums[rows][columns]) {
  for (long g = 0; g < groups; g++) {
    __m512i factor[columns];
#pragma GCC unroll 8
    for (int j = 0; j < columns; j++) factor[j] = _mm512_load_si512(right + g * step + j * column_stride);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      __m512i x = _mm512_set1_epi32(*(const int32_t *)(left + i * left_stride + g * 4));
#pragma GCC unroll 8
      for (int j = 0; j < columns; j++) sums[i][j] = add_product(sums[i][j], x, factor[j], kind);
    }
  }
}
