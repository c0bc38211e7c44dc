// What lies between the encoder's matrix products, each in one pass over memory: residual sum, norm and rounding;
// activation and gate; attention with its rotation. For x86-64 with AVX-512 and AMX; built and loaded by compiled.py.
//
// Matrices are row-major. Numbers of 16 bits are bfloat16. Rows are rounded to 8-bit integers from their smallest to
// their largest value: x = middle + step * integer. A product of such integers arrives as bfloat16, without what belongs
// to its row: it is step * product + middle * sums + bias, where `sums` has the sum of the weights of every column.
//
// Every row, and every sequence and head of attention, is computed by itself in one order of additions, so nothing
// depends on its neighbours or on the number of threads. Widths are multiples of 16, head sizes of 32.

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define LANES 16
#define TINY 1e-30f
#define ALIGNED __attribute__((aligned(64)))

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

// --- residual sum, norm, rounding ------------------------------------------------------------------------------------

// A row to 8-bit integers, from its smallest value to its largest.
static inline void round_row(const float *row, long width, float least, float most, int8_t *out, float *step,
                             float *middle) {
  float range = most - least > TINY ? most - least : TINY;
  f32x16 scale = spread(255.0f / range), from = spread(least);
  __m512i half = _mm512_set1_epi32(128);
  for (long i = 0; i < width; i += LANES) {
    f32x16 x = _mm512_mul_ps(_mm512_sub_ps(_mm512_loadu_ps(row + i), from), scale);
    __m512i q = _mm512_sub_epi32(_mm512_cvtps_epi32(x), half);
    _mm_storeu_si128((__m128i *)(out + i), _mm512_cvtsepi32_epi8(q));
  }
  *step = range / 255.0f;
  *middle = least + 128.0f * *step;
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

// --- activation and gate ---------------------------------------------------------------------------------------------

enum { SILU, GELU, GELU_TANH, RELU };

static inline f32x16 sigmoid(f32x16 x) {  // 1 / (1 + 2^(-x log2 e)), and 0 where that power overflows
  f32x16 power = exp2_fine(_mm512_max_ps(_mm512_mul_ps(x, spread(-1.44269504f)), spread(-126.0f)));
  return reciprocal(_mm512_add_ps(spread(1.0f), _mm512_min_ps(power, spread(1e38f))));
}

// Abramowitz and Stegun, 7.1.26: erf to 1.5e-7.
static inline f32x16 erf_of(f32x16 x) {
  f32x16 size = _mm512_abs_ps(x), t = reciprocal(_mm512_fmadd_ps(size, spread(0.3275911f), spread(1.0f)));
  f32x16 p = _mm512_fmadd_ps(spread(1.061405429f), t, spread(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, spread(1.421413741f));
  p = _mm512_fmadd_ps(p, t, spread(-0.284496736f));
  p = _mm512_mul_ps(_mm512_fmadd_ps(p, t, spread(0.254829592f)), t);
  f32x16 power = exp2_fine(_mm512_max_ps(_mm512_mul_ps(_mm512_mul_ps(x, x), spread(-1.44269504f)), spread(-126.0f)));
  f32x16 erf = _mm512_fnmadd_ps(p, power, spread(1.0f));
  __m512i sign = _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32((int)0x80000000));
  return _mm512_castsi512_ps(_mm512_or_si512(_mm512_castps_si512(erf), sign));
}

static inline f32x16 activation(f32x16 x, int kind) {
  switch (kind) {
    case SILU:
      return _mm512_mul_ps(x, sigmoid(x));
    case GELU:
      x = _mm512_mul_ps(x, spread(0.5f));
      return _mm512_fmadd_ps(x, erf_of(_mm512_mul_ps(x, spread(1.41421356f))), x);
    case GELU_TANH: {  // 0.5 (1 + tanh(u)) is sigmoid(2 u)
      f32x16 cubic = _mm512_fmadd_ps(_mm512_mul_ps(x, x), spread(0.044715f), spread(1.0f));
      return _mm512_mul_ps(x, sigmoid(_mm512_mul_ps(_mm512_mul_ps(x, cubic), spread(1.59576912f))));
    }
    default:
      return _mm512_max_ps(x, _mm512_setzero_ps());
  }
}

static inline __attribute__((always_inline)) void activate_rows(const Product *y, long rows, long inner, int kind,
                                                                int gated, uint16_t *x, int8_t *q, float *q_step,
                                                                float *q_middle, int threads) {
#pragma omp parallel for num_threads(threads) schedule(static) if (rows > 8)
  for (long r = 0; r < rows; r++) {
    float row[inner] ALIGNED;
    f32x16 least = spread(3e38f), most = spread(-3e38f);
    for (long i = 0; i < inner; i += LANES) {
      f32x16 v = activation(restored(y, r, gated ? inner + i : i), kind);
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

// --- attention -------------------------------------------------------------------------------------------------------

#define TILE 16  // rows of an AMX tile; each has 64 bytes: 32 numbers of a left factor, or 16 pairs of a right one
#define BLOCK 32 // queries, and keys, that are multiplied together

typedef struct {
  uint8_t palette, start_row, reserved[14];
  uint16_t bytes_per_row[16];
  uint8_t rows[16];
} ALIGNED TileConfig;

// Asks the system for AMX; 0: granted.
int prepare(void) { return (int)syscall(SYS_arch_prctl, 0x1023 /* ARCH_REQ_XCOMP_PERM */, 18 /* tile data */); }

// Working memory of a thread, kept for the next call.
static __thread char *scratch;
static __thread size_t scratch_size;

static char *scratch_of(size_t size) {
  if (size > scratch_size) {
    free(scratch);
    scratch = aligned_alloc(64, (size + 4095) / 4096 * 4096);
    scratch_size = scratch ? size : 0;
  }
  return scratch;
}

static inline void transpose16(const uint32_t *from, long stride, uint32_t *to) {
  __m512i r[16], t[16];
  for (int i = 0; i < 16; i++) r[i] = _mm512_loadu_si512(from + i * stride);
  for (int i = 0; i < 8; i++) {
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  }
  for (int i = 0; i < 4; i++) {
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  }
  for (int j = 0; j < 4; j++) {
    __m512i a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    __m512i c = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd), d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    _mm512_storeu_si512(to + 16 * j, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_storeu_si512(to + 16 * (4 + j), _mm512_shuffle_i32x4(c, d, 0x88));
    _mm512_storeu_si512(to + 16 * (8 + j), _mm512_shuffle_i32x4(a, b, 0xdd));
    _mm512_storeu_si512(to + 16 * (12 + j), _mm512_shuffle_i32x4(c, d, 0xdd));
  }
}

// One head of one sequence: where its queries stand in the product (from row `first` and column `queries` on), how far
// it is from there to keys and to values, and the rotation of its tokens.
typedef struct {
  const Product *qkv;
  const float *cos, *sin;
  long first, queries, part, size, length;
} Head;

// Row `t` of queries (which 0) or keys (1), rotated, in bfloat16. The two halves of a head are the pairs' coordinates.
static inline void read_rotated(const Head *head, int which, long t, uint16_t *to) {
  long half = head->size / 2, column = head->queries + which * head->part;
  for (long i = 0; i < half; i += LANES) {
    f32x16 a = restored(head->qkv, head->first + t, column + i);
    f32x16 b = restored(head->qkv, head->first + t, column + half + i);
    if (head->cos) {
      long place = (head->first + t) * head->size + i;
      f32x16 cos = _mm512_loadu_ps(head->cos + place), sin = _mm512_loadu_ps(head->sin + place);
      f32x16 turned = _mm512_fmsub_ps(a, cos, _mm512_mul_ps(b, sin));
      b = _mm512_fmadd_ps(b, cos, _mm512_mul_ps(a, sin));
      a = turned;
    }
    store_narrow(to + i, a);
    store_narrow(to + half + i, b);
  }
}

// Keys as right factors: for every 16 keys and 32 coordinates a tile of 16 pairs of coordinates by 16 keys.
static void pack_keys(const Head *head, long padded, uint32_t *to) {
  uint16_t rows[TILE * head->size] ALIGNED;
  for (long t = 0; t < padded; t += TILE) {
    for (long i = 0; i < TILE; i++) {
      if (t + i < head->length)
        read_rotated(head, 1, t + i, rows + i * head->size);
      else
        memset(rows + i * head->size, 0, head->size * sizeof(uint16_t));
    }
    for (long k = 0; k < head->size; k += 32, to += TILE * 16)
      transpose16((const uint32_t *)(rows + k), head->size / 2, to);
  }
}

// Values as right factors: for every 32 keys and 16 coordinates a tile of 16 pairs of keys by 16 coordinates.
static void pack_values(const Head *head, long padded, uint32_t *to) {
  long column = head->queries + 2 * head->part;
  for (long t = 0; t < padded; t += 32)
    for (long k = 0; k < head->size; k += 16)
      for (long i = t; i < t + 32; i += 2, to += 16) {
        __m512i pair = _mm512_setzero_si512();
        for (long j = i; j < i + 2 && j < head->length; j++) {
          __m512i wide = _mm512_cvtepu16_epi32(narrow(restored(head->qkv, head->first + j, column + k)));
          pair = _mm512_or_si512(pair, j == i ? wide : _mm512_slli_epi32(wide, 16));
        }
        _mm512_storeu_si512(to, pair);
      }
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
static inline __attribute__((always_inline)) void multiply_keys(const uint16_t *queries, const uint32_t *keys,
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

// A row of scores to weights in bfloat16, in place (they need half the room), not divided by their sum, which it returns.
static inline float soften(char *row, long length, long padded, float scale) {
  float *scores = (float *)row;
  uint16_t *weights = (uint16_t *)row;
  long whole = length / LANES * LANES;
  __mmask16 rest = (__mmask16)((1u << (length - whole)) - 1);
  f32x16 most = spread(-3e38f), next = most, by = spread(scale * 1.44269504f);
  long i = 0;
  for (; i + 2 * LANES <= whole; i += 2 * LANES) {
    most = _mm512_max_ps(most, _mm512_load_ps(scores + i));
    next = _mm512_max_ps(next, _mm512_load_ps(scores + i + LANES));
  }
  for (; i < whole; i += LANES) most = _mm512_max_ps(most, _mm512_load_ps(scores + i));
  if (rest) next = _mm512_mask_max_ps(next, rest, next, _mm512_load_ps(scores + whole));
  f32x16 least = _mm512_mul_ps(spread(_mm512_reduce_max_ps(_mm512_max_ps(most, next))), by);
  f32x16 sum0 = _mm512_setzero_ps(), sum1 = sum0;
  for (i = 0; i + 2 * LANES <= whole; i += 2 * LANES) {
    f32x16 a = exp2_coarse(_mm512_fmsub_ps(_mm512_load_ps(scores + i), by, least));
    f32x16 b = exp2_coarse(_mm512_fmsub_ps(_mm512_load_ps(scores + i + LANES), by, least));
    sum0 = _mm512_add_ps(sum0, a), sum1 = _mm512_add_ps(sum1, b);
    _mm512_store_si512(weights + i, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
  for (; i < padded; i += 2 * LANES) {
    __mmask32 valid = i + 2 * LANES <= length ? ~0u : i < length ? (1u << (length - i)) - 1 : 0;
    f32x16 a = exp2_coarse(_mm512_fmsub_ps(_mm512_load_ps(scores + i), by, least));
    f32x16 b = exp2_coarse(_mm512_fmsub_ps(_mm512_load_ps(scores + i + LANES), by, least));
    a = _mm512_maskz_mov_ps((__mmask16)valid, a), b = _mm512_maskz_mov_ps((__mmask16)(valid >> 16), b);
    sum0 = _mm512_add_ps(sum0, a), sum1 = _mm512_add_ps(sum1, b);
    _mm512_store_si512(weights + i, (__m512i)_mm512_cvtne2ps_pbh(b, a));
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(sum0, sum1));
}

// Weights of 16 or 32 queries times values, divided by the sums, to `out`.
static inline __attribute__((always_inline)) void multiply_values(const char *weights, long stride,
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

// The queries from `start` to `end` of one head.
static void attend(const Head *head, long start, long end, float scale, uint16_t *out, long out_stride, char *memory) {
  long padded = (head->length + BLOCK - 1) / BLOCK * BLOCK, size = head->size;
  uint32_t *keys = (uint32_t *)memory, *values = keys + padded * size / 2;
  uint16_t *queries = (uint16_t *)(values + padded * size / 2);
  char *scores = (char *)(queries + BLOCK * size);
  long stride = padded * sizeof(float) + 64; // not a power of two: rows would meet in the same lines of the cache
  float sums[BLOCK];
  pack_keys(head, padded, keys);
  pack_values(head, padded, values);
  for (long t = start; t < end; t += BLOCK) {
    long count = end - t < BLOCK ? end - t : BLOCK, rows = count > TILE ? BLOCK : TILE;
    for (long i = 0; i < count; i++) read_rotated(head, 0, t + i, queries + i * size);
    memset(queries + count * size, 0, (rows - count) * size * sizeof(uint16_t));
    if (rows == BLOCK)
      multiply_keys(queries, keys, padded, size, scores, stride, 1);
    else
      multiply_keys(queries, keys, padded, size, scores, stride, 0);
    for (long i = 0; i < count; i++) sums[i] = soften(scores + i * stride, head->length, padded, scale);
    if (rows == BLOCK)
      multiply_values(scores, stride, values, padded, size, sums, count, out + t * out_stride, out_stride, 1);
    else
      multiply_values(scores, stride, values, padded, size, sums, count, out + t * out_stride, out_stride, 0);
  }
}

// Softmax attention within each of `sequences` sequences, which lie end to end with `bounds`. `values` has a row
// of (3, heads, size) for every token, cosines and sines (or NULL) a row of `size`, `out` one of (heads, size).
// Returns 1 where there was no memory.
int attention(const uint16_t *values, const float *step, const float *middle, const float *sums, const float *bias,
              const float *cos, const float *sin, const int32_t *bounds, long sequences, long heads, long size,
              float scale, uint16_t *out, int threads) {
  long longest = 0, width = heads * size;
  const Product qkv = {values, step, middle, sums, bias, 3 * width};
  for (long s = 0; s < sequences; s++)
    if (bounds[s + 1] - bounds[s] > longest) longest = bounds[s + 1] - bounds[s];
  long padded = (longest + BLOCK - 1) / BLOCK * BLOCK;
  size_t memory = padded * size * 4 + BLOCK * size * 2 + BLOCK * (padded * sizeof(float) + 64);
  // Few heads for many threads: a head's queries are shared out, and its keys laid out several times.
  long cuts = sequences * heads >= 4 * threads ? 1 : (longest + 511) / 512;
  int failed = 0;
#pragma omp parallel num_threads(threads) if (sequences * heads > 1)
  {
    TileConfig before, ours = {.palette = 1};
    for (int i = 0; i < 8; i++) ours.rows[i] = TILE, ours.bytes_per_row[i] = 64;
    _tile_storeconfig(&before);
    _tile_loadconfig(&ours);
    char *mine = scratch_of(memory);
    if (!mine) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, 1) nowait
    for (long item = 0; item < sequences * heads * cuts; item++) {
      long s = item / (heads * cuts), h = item / cuts % heads, cut = item % cuts;
      long first = bounds[s], length = bounds[s + 1] - first;
      long share = cuts == 1 ? length : 512, start = cut * share, end = start + share < length ? start + share : length;
      if (!mine || start >= length) continue;
      Head head = {&qkv, cos, sin, first, h * size, width, size, length};
      attend(&head, start, end, scale, out + first * width + h * size, width, mine);
    }
    if (before.palette) // as the matrix library of this thread left it
      _tile_loadconfig(&before);
    else
      _tile_release();
  }
  return failed;
}
