// Attention's products by the matrix unit (AMX). TILE is also the rows of its tiles; a row has 64 bytes: 32 numbers of a
// left factor, or 16 pairs of a right one.

#pragma once

#include <sys/syscall.h>
#include <unistd.h>

#define QUERIES 32 // that are multiplied together

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes_per_row[16];
  uint8_t rows[16];
} ALIGNED TileConfig;

// Asks the system for AMX; 0: granted.
int prepare(void) { return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */); }

// Where the tile of 32 keys and 16 coordinates of values lies.
static inline long value_tile(long t, long k, long padded, long size) {
  (void)padded;
  return (t / BLOCK * (size / TILE) + k / TILE) * 256;
}

// How a thread's matrix unit is set. The compiler's own functions for it do not say that all of it is read and written.
typedef TileConfig Unit;

static inline void set_unit(const Unit *unit) { __asm__ volatile("ldtilecfg %0" ::"m"(*unit)); }

static inline void take_unit(Unit *before) {
  Unit ours = {.palette = 1};
  for (int i = 0; i < 8; i++) ours.rows[i] = TILE, ours.bytes_per_row[i] = 64;
  __asm__ volatile("sttilecfg %0" : "=m"(*before));
  set_unit(&ours);
}

static inline void give_back_unit(const Unit *before) {
  if (before->palette) // as the matrix library of this thread left it
    set_unit(before);
  else
    _tile_release();
}

// The instructions on tiles do not tell the compiler what memory they read.
#define BARRIER() __asm__ volatile("" ::: "memory")

// Tiles 0 to 3 hold 32 by 32 sums, row by row; without `two` only the upper 16 rows.
#define ZERO_TILES(two)                                                                                     \
  do {                                                                                                      \
    _tile_zero(0);                                                                                          \
    _tile_zero(1);                                                                                          \
    if (two) {                                                                                              \
      _tile_zero(2);                                                                                        \
      _tile_zero(3);                                                                                        \
    }                                                                                                       \
  } while (0)

#define STORE_TILES(to, stride, two)                                                                        \
  do {                                                                                                      \
    _tile_stored(0, (to), (stride));                                                                        \
    _tile_stored(1, (to) + 64, (stride));                                                                   \
    if (two) {                                                                                              \
      _tile_stored(2, (to) + TILE * (stride), (stride));                                                    \
      _tile_stored(3, (to) + TILE * (stride) + 64, (stride));                                               \
    }                                                                                                       \
    BARRIER();                                                                                              \
  } while (0)

// Scores of 16 (or, `two`, 32) queries with all keys, float32; a row of scores has `stride` bytes.
static inline __attribute__((always_inline)) void multiply_keys_tiles(const uint16_t *queries, const uint32_t *keys,
                                                                      long padded, long size, char *scores, long stride,
                                                                      int two) {
  long steps = size / 32, bytes = size * 2;
  BARRIER();
  for (long t = 0; t < padded; t += BLOCK, keys += 2 * steps * 256) {
    ZERO_TILES(two);
    for (long k = 0; k < steps; k++) {
      _tile_loadd(6, keys + k * 256, 64);
      _tile_loadd(7, keys + (steps + k) * 256, 64);
      _tile_loadd(4, queries + k * 32, bytes);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (!two) continue;
      _tile_loadd(5, queries + TILE * size + k * 32, bytes);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    char *to = scores + t * sizeof(float);
    STORE_TILES(to, stride, two);
  }
}

// Scores of `count` queries with all keys.
static void multiply_keys(uint16_t *queries, long count, const uint32_t *keys, long padded, long size, char *scores,
                          long stride) {
  long rows = count > TILE ? QUERIES : TILE;
  memset(queries + count * size, 0, (rows - count) * size * sizeof(uint16_t));
  if (rows == QUERIES)
    multiply_keys_tiles(queries, keys, padded, size, scores, stride, 1);
  else
    multiply_keys_tiles(queries, keys, padded, size, scores, stride, 0);
}

// Weights of 16 or 32 queries times values, divided by the sums, to `out`.
static inline __attribute__((always_inline)) void multiply_values_tiles(const char *weights, long stride,
                                                                        const uint32_t *values, long padded, long size,
                                                                        const float *sums, long count, uint16_t *out,
                                                                        long out_stride, int two) {
  float mixed[BLOCK * 32] ALIGNED;
  BARRIER();
  for (long k = 0; k < size; k += 32) {
    ZERO_TILES(two);
    const uint32_t *from = values + k / 16 * 256;
    for (long t = 0; t < padded; t += 32, from += size / 16 * 256) {
      _tile_loadd(6, from, 64);
      _tile_loadd(7, from + 256, 64);
      _tile_loadd(4, weights + t * 2, stride);
      _tile_dpbf16ps(0, 4, 6);
      _tile_dpbf16ps(1, 4, 7);
      if (!two) continue;
      _tile_loadd(5, weights + TILE * stride + t * 2, stride);
      _tile_dpbf16ps(2, 5, 6);
      _tile_dpbf16ps(3, 5, 7);
    }
    STORE_TILES((char *)mixed, BLOCK * sizeof(float), two);
    for (long i = 0; i < count; i++) {
      f32x16 by = spread(1.0f / sums[i]);
      store_narrow(out + i * out_stride + k, _mm512_mul_ps(_mm512_load_ps(mixed + i * 32), by));
      store_narrow(out + i * out_stride + k + 16, _mm512_mul_ps(_mm512_load_ps(mixed + i * 32 + 16), by));
    }
  }
}

// Weights of `count` queries times values, divided by the sums, to `out`.
static void multiply_values(const char *weights, long stride, long count, const uint32_t *values, long padded, long size,
                            const float *sums, uint16_t *out, long out_stride) {
  if (count > TILE)
    multiply_values_tiles(weights, stride, values, padded, size, sums, count, out, out_stride, 1);
  else
    multiply_values_tiles(weights, stride, values, padded, size, sums, count, out, out_stride, 0);
}
