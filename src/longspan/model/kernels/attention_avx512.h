// Attention's products in vector registers (AVX512-BF16).

#pragma once

#include "microkernel.h"

#define QUERIES 24 // that share what is read of keys

// There is no unit to be taken.
typedef int Unit;
static inline void take_unit(Unit *before) { *before = 0; }
static inline void give_back_unit(const Unit *before) { (void)before; }

int prepare(void) { return 0; }

// Where the tile of 32 keys and 16 coordinates of values lies: what is summed, the keys, follows one another.
static inline long value_tile(long t, long k, long padded, long size) {
  (void)size;
  return (k / TILE * (padded / BLOCK) + t / BLOCK) * 256;
}

// Scores of `count` queries with all keys, float32; a row of scores has `stride` bytes.
static void multiply_keys(const uint16_t *queries, long count, const uint32_t *keys, long padded, long size,
                          char *scores, long stride) {
  long columns;
  for (long t = 0; t < padded; t += columns * TILE) {
    columns = padded - t >= 64 ? 4 : 2;
    const char *right = (const char *)(keys + t * size / 2);
    for (long i = 0; i < count; i += ROWS) {
      long rows = count - i < ROWS ? count - i : ROWS;
      const char *left = (const char *)(queries + i * size);
      char *to = scores + i * stride + t * sizeof(float);
      if (columns == 4)
        multiply_tile_of(rows, 4, BFLOAT16, left, size * 2, right, size * 32, 64, size / 2, to, stride);
      else
        multiply_tile_of(rows, 2, BFLOAT16, left, size * 2, right, size * 32, 64, size / 2, to, stride);
    }
  }
}

// Weights of `count` queries times values, divided by the sums, to `out`.
static void multiply_values(const char *weights, long stride, long count, const uint32_t *values, long padded, long size,
                            const float *sums, uint16_t *out, long out_stride) {
  float mixed[ROWS][COLUMNS * LANES] ALIGNED;
  long columns, between = padded * 32; // bytes from 16 coordinates to the next 16
  for (long k = 0; k < size; k += columns * TILE) {
    columns = size - k >= 64 ? 4 : 2;
    const char *right = (const char *)(values + value_tile(0, k, padded, size));
    for (long i = 0; i < count; i += ROWS) {
      long rows = count - i < ROWS ? count - i : ROWS;
      const char *left = weights + i * stride;
      if (columns == 4)
        multiply_tile_of(rows, 4, BFLOAT16, left, stride, right, between, 64, padded / 2, (char *)mixed, sizeof *mixed);
      else
        multiply_tile_of(rows, 2, BFLOAT16, left, stride, right, between, 64, padded / 2, (char *)mixed, sizeof *mixed);
      for (long r = 0; r < rows; r++)
        for (long j = 0; j < columns; j++) {
          f32x16 v = _mm512_mul_ps(_mm512_load_ps(mixed[r] + j * LANES), spread(1.0f / sums[i + r]));
          store_narrow(out + (i + r) * out_stride + k + j * LANES, v);
        }
    }
  }
}
