// Attention's products in vector registers (AVX512-BF16).

#pragma once

#include "microkernel.h"

#define QUERIES 24 // that share what is read of keys
#define ROWS 6     // of queries, by 64 keys or coordinates: the sums that fit into registers

// There is no unit to be taken.
typedef int Unit;
static inline Unit take_unit(void) { return 0; }
static inline void give_back_unit(Unit unit) { (void)unit; }

int prepare(void) { return 0; }

INLINE void score_block(const int rows, const int columns, const char *queries, const char *keys, long size,
                        char *scores, long stride) {
  __m512i sums[rows][columns];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) sums[i][j] = _mm512_setzero_si512();
  accumulate(rows, columns, BFLOAT16, queries, size * 2, keys, size * 32, 64, size / 2, sums);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) _mm512_store_si512(scores + i * stride + j * 64, sums[i][j]);
}

// Scores of `count` queries with all keys, float32; a row of scores has `stride` bytes.
static void multiply_keys(const uint16_t *queries, long count, const uint32_t *keys, long padded, long size,
                          char *scores, long stride) {
  for (long t = 0; t < padded;) {
    long columns = padded - t >= 64 ? 4 : 2;
    for (long i = 0; i < count;) {
      const char *left = (const char *)(queries + i * size), *right = (const char *)(keys + t * size / 2);
      char *to = scores + i * stride + t * sizeof(float);
#define CASE(n)                                                                                             \
  case n:                                                                                                   \
    if (columns == 4)                                                                                       \
      score_block(n, 4, left, right, size, to, stride);                                                     \
    else                                                                                                    \
      score_block(n, 2, left, right, size, to, stride);                                                     \
    i += n;                                                                                                 \
    break;
      switch (count - i) {
        default:
          CASE(6)
          CASE(5)
          CASE(4)
          CASE(3)
          CASE(2)
          CASE(1)
      }
#undef CASE
    }
    t += columns * TILE;
  }
}

INLINE void mix_block(const int rows, const int columns, const char *weights, long stride, const char *values,
                      long padded, long size, const float *sums, uint16_t *out, long out_stride) {
  __m512i mixed[rows][columns];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++) mixed[i][j] = _mm512_setzero_si512();
  for (long t = 0; t < padded; t += BLOCK, weights += BLOCK * 2, values += BLOCK * size * 2)
    accumulate(rows, columns, BFLOAT16, weights, stride, values, 1024, 64, BLOCK / 2, mixed);
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < columns; j++)
      store_narrow(out + i * out_stride + j * 16, _mm512_mul_ps((__m512)mixed[i][j], spread(1.0f / sums[i])));
}

// Weights of `count` queries times values, divided by the sums, to `out`.
static void multiply_values(const char *weights, long stride, long count, const uint32_t *values, long padded, long size,
                            const float *sums, uint16_t *out, long out_stride) {
  for (long k = 0; k < size;) {
    long columns = size - k >= 64 ? 4 : 2;
    const char *right = (const char *)(values + k / TILE * 256);
    for (long i = 0; i < count;) {
      const char *left = weights + i * stride;
      uint16_t *to = out + i * out_stride + k;
#define CASE(n)                                                                                             \
  case n:                                                                                                   \
    if (columns == 4)                                                                                       \
      mix_block(n, 4, left, stride, right, padded, size, sums + i, to, out_stride);                         \
    else                                                                                                    \
      mix_block(n, 2, left, stride, right, padded, size, sums + i, to, out_stride);                         \
    i += n;                                                                                                 \
    break;
      switch (count - i) {
        default:
          CASE(6)
          CASE(5)
          CASE(4)
          CASE(3)
          CASE(2)
          CASE(1)
      }
#undef CASE
    }
    k += columns * TILE;
  }
}
