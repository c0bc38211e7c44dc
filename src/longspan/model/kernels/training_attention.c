// Attention of training, forward and back, each in one pass: queries, keys and values are read from where the product
// left them and rotated on the way, weights are computed again on the way back, and no matrix of scores is ever whole.
// For x86-64 with AVX-512 and its bfloat16 products; built and loaded by compiled_training.py.
//
// Every product has a left factor, read one number at a time, and a right factor, read 16 numbers at a time; what is
// summed over are words of 32 bits: one float32, or (`half`) a pair of bfloat16. So both types share all of the code.
//
// Every head of every sequence is computed by one thread in one order of additions: nothing depends on neighbours or on
// the number of threads. Head sizes are multiples of 32.

#include "training.h"

#define PANEL 64    // columns of a right factor that lie together, and that one tile computes
#define ROWS 6      // rows of a tile: 24 registers hold its sums
#define WORDS 128   // words that are summed before a tile is stored: so much of a right factor fits the first cache
#define KEYS 256    // keys that the way back computes together
#define QUERIES 48  // queries that go against them

static inline long up_to(long n, long step) { return (n + step - 1) / step * step; }

// --- products --------------------------------------------------------------------------------------------------------

// A tile of `rows` by 16 `columns` sums: c (+)= a b. Of `a` word w of row i is a[i * a_row + w * a_word]; `b` has a row
// of PANEL words for every word.
INLINE void multiply_tile(const float *a, long a_row, long a_word, const float *b, long words, float *c, long c_row,
                          int rows, int columns, int half, int add) {
  f32x16 sums[ROWS][4];
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++)
      sums[i][j] = add ? _mm512_loadu_ps(c + i * c_row + j * LANES) : _mm512_setzero_ps();
  for (long w = 0; w < words; w++, a += a_word, b += PANEL) {
    f32x16 right[4];
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++) right[j] = _mm512_loadu_ps(b + j * LANES);
#pragma GCC unroll 6
    for (int i = 0; i < rows; i++) {
      f32x16 left = spread(a[i * a_row]);
#pragma GCC unroll 4
      for (int j = 0; j < columns; j++)
        sums[i][j] = half ? _mm512_dpbf16_ps(sums[i][j], (__m512bh)left, (__m512bh)right[j])
                          : _mm512_fmadd_ps(left, right[j], sums[i][j]);
    }
  }
#pragma GCC unroll 6
  for (int i = 0; i < rows; i++)
#pragma GCC unroll 4
    for (int j = 0; j < columns; j++) _mm512_storeu_ps(c + i * c_row + j * LANES, sums[i][j]);
}

#define TILE_OF(NAME, COLUMNS, HALF)                                                                              \
  static void NAME(const float *a, long a_row, long a_word, const float *b, long words, float *c, long c_row,     \
                   long rows, int add) {                                                                          \
    for (; rows >= ROWS; rows -= ROWS, a += ROWS * a_row, c += ROWS * c_row)                                      \
      multiply_tile(a, a_row, a_word, b, words, c, c_row, ROWS, COLUMNS, HALF, add);                              \
    if (rows & 4) {                                                                                               \
      multiply_tile(a, a_row, a_word, b, words, c, c_row, 4, COLUMNS, HALF, add);                                 \
      a += 4 * a_row, c += 4 * c_row;                                                                             \
    }                                                                                                             \
    if (rows & 2) {                                                                                               \
      multiply_tile(a, a_row, a_word, b, words, c, c_row, 2, COLUMNS, HALF, add);                                 \
      a += 2 * a_row, c += 2 * c_row;                                                                             \
    }                                                                                                             \
    if (rows & 1) multiply_tile(a, a_row, a_word, b, words, c, c_row, 1, COLUMNS, HALF, add);                     \
  }
TILE_OF(multiply_float_16, 1, 0)
TILE_OF(multiply_float_32, 2, 0)
TILE_OF(multiply_float_48, 3, 0)
TILE_OF(multiply_float_64, 4, 0)
TILE_OF(multiply_half_16, 1, 1)
TILE_OF(multiply_half_32, 2, 1)
TILE_OF(multiply_half_48, 3, 1)
TILE_OF(multiply_half_64, 4, 1)
#undef TILE_OF

typedef void (*Multiply)(const float *, long, long, const float *, long, float *, long, long, int);
static const Multiply MULTIPLY[2][4] = {
    {multiply_float_16, multiply_float_32, multiply_float_48, multiply_float_64},
    {multiply_half_16, multiply_half_32, multiply_half_48, multiply_half_64}};

// c (+)= a b for `rows` rows and `columns` columns, a multiple of 16. `b` is in panels, each of `b_panel` words.
static void multiply(const float *a, long a_row, long a_word, const float *b, long b_panel, long words, float *c,
                     long c_row, long rows, long columns, int half, int add) {
  for (long j = 0; j < columns; j += PANEL) {
    long wide = columns - j < PANEL ? columns - j : PANEL;
    Multiply tiles = MULTIPLY[half][wide / LANES - 1];
    for (long w = 0; w < words; w += WORDS)
      tiles(a + w * a_word, a_row, a_word, b + j / PANEL * b_panel + w * PANEL, words - w < WORDS ? words - w : WORDS,
            c + j, c_row, rows, add || w);
  }
}

// --- factors ---------------------------------------------------------------------------------------------------------

// One head of one sequence: where its numbers begin in a tensor with rows of `stride`, and the rotation of its tokens.
typedef struct {
  const float *cos, *sin; // of the sequence's first token, rows of `size`; or NULL
  long length, size;
  int half;
} Head;

// Left factors, a row of words for every token: 16 rows at least are written, those past the end are 0.
static void read_rows(const Head *head, const void *from, long stride, int rotated, float *to) {
  long size = head->size, middle = size / 2, bytes = head->half ? 2 : 4, padded = up_to(head->length, LANES);
  for (long t = 0; t < head->length; t++) {
    const char *row = (const char *)from + t * stride * bytes;
    char *out = (char *)to + t * size * bytes;
    if (!rotated || !head->cos) {
      memcpy(out, row, size * bytes);
      continue;
    }
    for (long i = 0; i < middle; i += LANES) {
      f32x16 a = load(row, i, head->half), b = load(row, middle + i, head->half);
      f32x16 cos = _mm512_loadu_ps(head->cos + t * size + i), sin = _mm512_loadu_ps(head->sin + t * size + i);
      store(out, i, _mm512_fmsub_ps(a, cos, _mm512_mul_ps(b, sin)), head->half);
      store(out, middle + i, _mm512_fmadd_ps(b, cos, _mm512_mul_ps(a, sin)), head->half);
    }
  }
  memset((char *)to + head->length * size * bytes, 0, (padded - head->length) * size * bytes);
}

static inline void transpose16(const float *from, long stride, float *to, long to_stride) {
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
    _mm512_storeu_si512(to + j * to_stride, _mm512_shuffle_i32x4(a, b, 0x88));
    _mm512_storeu_si512(to + (4 + j) * to_stride, _mm512_shuffle_i32x4(c, d, 0x88));
    _mm512_storeu_si512(to + (8 + j) * to_stride, _mm512_shuffle_i32x4(a, b, 0xdd));
    _mm512_storeu_si512(to + (12 + j) * to_stride, _mm512_shuffle_i32x4(c, d, 0xdd));
  }
}

// Right factors whose columns are tokens, summed over coordinates, of left ones with `words` words a row.
static void lay_tokens_across(const float *rows, long padded, long words, float *to) {
  for (long t = 0; t < padded; t += LANES)
    for (long w = 0; w < words; w += LANES)
      transpose16(rows + t * words + w, words, to + (t / PANEL * words + w) * PANEL + t % PANEL, PANEL);
}

// Right factors whose columns are coordinates, summed over tokens; panels of `tokens` or half as many words.
static void lay_tokens_down(const float *rows, long padded, long size, int half, float *to) {
  for (long k = 0; k < size; k += LANES) {
    float *panel = to + k / PANEL * (half ? padded / 2 : padded) * PANEL + k % PANEL;
    if (half)
      for (long t = 0; t < padded; t += 2) {
        const uint16_t *pair = (const uint16_t *)rows + t * size + k;
        __m512i low = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)pair));
        __m512i high = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)(pair + size)));
        _mm512_storeu_si512(panel + t / 2 * PANEL, _mm512_or_si512(low, _mm512_slli_epi32(high, 16)));
      }
    else
      for (long t = 0; t < padded; t++) _mm512_storeu_ps(panel + t * PANEL, _mm512_loadu_ps(rows + t * size + k));
  }
}

// Words of the factors of one head: rows of tokens, and (either way) panels, whose last one may be part empty.
static inline long row_words(long padded, long size, int half) { return padded * size / (half ? 2 : 1); }
static inline long across_words(long padded, long size, int half) {
  return up_to(padded, PANEL) * size / (half ? 2 : 1);
}
static inline long down_words(long padded, long size, int half) {
  return padded * up_to(size, PANEL) / (half ? 2 : 1);
}

// Working memory of a thread, kept for the next call.
static __thread float *scratch;
static __thread size_t scratch_words;

static float *scratch_of(size_t words) {
  if (words > scratch_words) {
    free(scratch);
    scratch = aligned_alloc(64, up_to(words * sizeof(float), 4096));
    scratch_words = scratch ? words : 0;
  }
  return scratch;
}

// --- forward ---------------------------------------------------------------------------------------------------------

// Queries whose scores of all keys are in memory at a time: few enough for the second cache.
static inline long queries_at_a_time(long padded) {
  long most = (96 * 1024) / padded / ROWS * ROWS;
  return most < ROWS ? ROWS : most > QUERIES ? QUERIES : most;
}

// One row of scores to weights (in place; `half`: bfloat16), which are 0 past the end. Returns their sum and, in
// `largest`, the largest score in powers of two.
INLINE float soften(float *scores, long length, long padded, float by, int half, float *largest) {
  f32x16 most = spread(-3e38f), sum = _mm512_setzero_ps();
  long whole = length / LANES * LANES;
  __mmask16 rest = (__mmask16)((1u << (length - whole)) - 1);
  for (long i = 0; i < whole; i += LANES) most = _mm512_max_ps(most, _mm512_loadu_ps(scores + i));
  if (rest) most = _mm512_mask_max_ps(most, rest, most, _mm512_loadu_ps(scores + whole));
  *largest = _mm512_reduce_max_ps(most) * by;
  f32x16 least = spread(*largest), scale = spread(by);
  for (long i = 0; i < padded; i += LANES) {
    f32x16 p = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(scores + i), scale, least), half);
    if (i == whole) p = _mm512_maskz_mov_ps(rest, p);
    sum = _mm512_add_ps(sum, p);
    store(scores, i, p, half);
  }
  return _mm512_reduce_add_ps(sum);
}

INLINE void attend(const Head *head, const void *q, const void *k, const void *v, long stride, void *out,
                   long out_stride, float *sums, float *memory, int half) {
  long length = head->length, size = head->size, padded = up_to(length, LANES), words = half ? size / 2 : size;
  long pairs = half ? padded / 2 : padded, at_a_time = queries_at_a_time(padded), score_row = padded + LANES;
  float *queries = memory, *rows = queries + row_words(padded, size, half);
  float *keys = rows + row_words(padded, size, half), *values = keys + across_words(padded, size, half);
  float *scores = values + down_words(padded, size, half), *mixed = scores + at_a_time * score_row;
  float by = 1.44269504f / sqrtf(size), largest[QUERIES], total[QUERIES];
  read_rows(head, q, stride, 1, queries);
  read_rows(head, k, stride, 1, rows);
  lay_tokens_across(rows, padded, words, keys);
  read_rows(head, v, stride, 0, rows);
  lay_tokens_down(rows, padded, size, half, values);
  for (long t = 0; t < length; t += at_a_time) {
    long count = length - t < at_a_time ? length - t : at_a_time;
    multiply(queries + t * words, words, 1, keys, words * PANEL, words, scores, score_row, count, padded, half, 0);
    for (long i = 0; i < count; i++)
      total[i] = soften(scores + i * score_row, length, padded, by, half, largest + i);
    multiply(scores, score_row, 1, values, pairs * PANEL, pairs, mixed, size, count, size, half, 0);
    for (long i = 0; i < count; i++) {
      f32x16 share = spread(1.0f / total[i]);
      for (long d = 0; d < size; d += LANES)
        store(out, (t + i) * out_stride + d, _mm512_mul_ps(_mm512_loadu_ps(mixed + i * size + d), share), half);
      sums[t + i] = largest[i] + log2f(total[i]);
    }
  }
}

// --- back ------------------------------------------------------------------------------------------------------------

// Of a block of scores (and of the weights' gradients): weights and the scores' gradients. As left factors they are
// read along a row (`along`) and down a column (`weights`, `down`), which for pairs of bfloat16 are other words.
INLINE void soften_back(float *scores, float *grads, long count, long width, long left, const float *sums,
                        const float *deltas, float by, uint16_t *along, uint32_t *weights, uint32_t *down, int half) {
  __mmask16 every = 0xffff;
  for (long i = 0; i < up_to(count, 2); i += 2) {
    for (long j = 0; j < width; j += LANES) {
      __mmask16 valid = left - j >= LANES ? every : left > j ? (__mmask16)((1u << (left - j)) - 1) : 0;
      f32x16 p[2], ds[2];
      for (int n = 0; n < 2; n++) {
        float *s = scores + (i + n) * KEYS + j, *g = grads + (i + n) * KEYS + j;
        if (i + n < count) {
          p[n] = exp2_of(_mm512_fmsub_ps(_mm512_loadu_ps(s), spread(by), spread(sums[i + n])), half);
          p[n] = _mm512_maskz_mov_ps(valid, p[n]);
          ds[n] = _mm512_mul_ps(p[n], _mm512_sub_ps(_mm512_loadu_ps(g), spread(deltas[i + n])));
        } else
          p[n] = ds[n] = _mm512_setzero_ps();
        if (!half) _mm512_storeu_ps(s, p[n]), _mm512_storeu_ps(g, ds[n]);
      }
      if (!half) continue;
      __m512i both[2] = {(__m512i)_mm512_cvtne2ps_pbh(p[1], p[0]), (__m512i)_mm512_cvtne2ps_pbh(ds[1], ds[0])};
      __m512i zip = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5,
                                     20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
      _mm512_storeu_si512(weights + i / 2 * KEYS + j, _mm512_permutexvar_epi16(zip, both[0]));
      _mm512_storeu_si512(down + i / 2 * KEYS + j, _mm512_permutexvar_epi16(zip, both[1]));
      _mm256_storeu_si256((__m256i *)(along + i * KEYS + j), _mm512_castsi512_si256(both[1]));
      _mm256_storeu_si256((__m256i *)(along + (i + 1) * KEYS + j), _mm512_extracti64x4_epi64(both[1], 1));
    }
  }
}

// Gradients of `count` tokens from `t` on, times `scale`, turned back.
INLINE void write_rows(const Head *head, const float *from, long t, long count, float scale, int rotated, void *to,
                       long stride, int half) {
  long size = head->size, middle = size / 2;
  f32x16 by = spread(scale);
  for (long n = 0; n < count; n++, t++)
    for (long i = 0; i < middle; i += LANES) {
      f32x16 a = _mm512_mul_ps(_mm512_loadu_ps(from + n * size + i), by);
      f32x16 b = _mm512_mul_ps(_mm512_loadu_ps(from + n * size + middle + i), by);
      if (rotated && head->cos) {
        f32x16 cos = _mm512_loadu_ps(head->cos + t * size + i), sin = _mm512_loadu_ps(head->sin + t * size + i);
        f32x16 turned = _mm512_fmadd_ps(a, cos, _mm512_mul_ps(b, sin));
        b = _mm512_fmsub_ps(b, cos, _mm512_mul_ps(a, sin));
        a = turned;
      }
      store(to, t * stride + i, a, half);
      store(to, t * stride + middle + i, b, half);
    }
}

static size_t back_words(long padded, long size, int half) {
  size_t factors = 4 * row_words(padded, size, half) + 2 * across_words(padded, size, half);
  factors += 3 * down_words(padded, size, half);
  return factors + padded * size + 2 * KEYS * size + 4 * QUERIES * KEYS + padded;
}

INLINE void attend_back(const Head *head, const void *q, const void *k, const void *v, long stride, const void *out,
                        const void *grad, long out_stride, const float *sums, void *grad_q, void *grad_k, void *grad_v,
                        float *memory, int half) {
  long length = head->length, size = head->size, padded = up_to(length, LANES), words = half ? size / 2 : size;
  long rows = row_words(padded, size, half), across = across_words(padded, size, half);
  long down = down_words(padded, size, half), pair = half ? 2 : 1, panel = padded / pair * PANEL;
  float *q_rows = memory, *k_rows = q_rows + rows, *v_rows = k_rows + rows, *g_rows = v_rows + rows;
  float *k_across = g_rows + rows, *v_across = k_across + across;
  float *k_down = v_across + across, *q_down = k_down + down, *g_down = q_down + down;
  float *of_q = g_down + down, *of_k = of_q + padded * size, *of_v = of_k + KEYS * size;
  float *scores = of_v + KEYS * size, *grads = scores + QUERIES * KEYS, *pairs = grads + QUERIES * KEYS;
  float *deltas = pairs + 2 * QUERIES * KEYS;
  uint32_t *weights = (uint32_t *)pairs, *ds_down = weights + QUERIES * KEYS / 2;
  uint16_t *ds_along = (uint16_t *)(ds_down + QUERIES * KEYS / 2);
  float scale = 1.0f / sqrtf(size);
  read_rows(head, q, stride, 1, q_rows);
  read_rows(head, k, stride, 1, k_rows);
  read_rows(head, v, stride, 0, v_rows);
  read_rows(head, grad, out_stride, 0, g_rows);
  lay_tokens_across(k_rows, padded, words, k_across);
  lay_tokens_across(v_rows, padded, words, v_across);
  lay_tokens_down(k_rows, padded, size, half, k_down);
  lay_tokens_down(q_rows, padded, size, half, q_down);
  lay_tokens_down(g_rows, padded, size, half, g_down);
  for (long t = 0; t < length; t++) {
    f32x16 delta = _mm512_setzero_ps();
    for (long d = 0; d < size; d += LANES)
      delta = _mm512_fmadd_ps(load(out, t * out_stride + d, half), load(grad, t * out_stride + d, half), delta);
    deltas[t] = _mm512_reduce_add_ps(delta);
  }
  for (long j = 0; j < padded; j += KEYS) {
    long width = padded - j < KEYS ? padded - j : KEYS;
    for (long t = 0; t < length; t += QUERIES) {
      long count = length - t < QUERIES ? length - t : QUERIES, tokens = half ? (count + 1) / 2 : count;
      multiply(q_rows + t * words, words, 1, k_across + j * words, words * PANEL, words, scores, KEYS, count, width,
               half, 0);
      multiply(g_rows + t * words, words, 1, v_across + j * words, words * PANEL, words, grads, KEYS, count, width,
               half, 0);
      soften_back(scores, grads, count, width, length - j, sums + t, deltas + t, scale * 1.44269504f, ds_along, weights,
                  ds_down, half);
      const float *p = half ? (float *)weights : scores, *ds = half ? (float *)ds_down : grads;
      multiply(p, 1, KEYS, g_down + t / pair * PANEL, panel, tokens, of_v, size, width, size, half, t > 0);
      multiply(ds, 1, KEYS, q_down + t / pair * PANEL, panel, tokens, of_k, size, width, size, half, t > 0);
      multiply(half ? (float *)ds_along : grads, KEYS / pair, 1, k_down + j / pair * PANEL, panel, width / pair,
               of_q + t * size, size, count, size, half, j > 0);
    }
    long real = length - j < width ? length - j : width;
    write_rows(head, of_k, j, real, scale, 1, grad_k, stride, half);
    write_rows(head, of_v, j, real, 1.0f, 0, grad_v, stride, half);
  }
  write_rows(head, of_q, 0, length, scale, 1, grad_q, stride, half);
}

// --- all heads of all sequences --------------------------------------------------------------------------------------

static inline long at(long i, int half) { return i * (half ? 2 : 4); }

static long longest_of(const int32_t *bounds, long sequences) {
  long longest = 0;
  for (long s = 0; s < sequences; s++)
    if (bounds[s + 1] - bounds[s] > longest) longest = bounds[s + 1] - bounds[s];
  return longest;
}

// Softmax attention within each of `sequences` sequences, which lie end to end with `bounds`. `qkv` has a row of
// (3, heads, size) for every token, cosines and sines (or NULL) a row of `size`, `out` one of (heads, size); `sums`
// gets the logarithms (in powers of two) of the sums of weights, (heads, tokens). Returns 1 where there was no memory.
int attention(const char *qkv, const float *cos, const float *sin, const int32_t *bounds, long sequences, long heads,
              long size, char *out, float *sums, int half, int threads) {
  long padded = up_to(longest_of(bounds, sequences), LANES), width = heads * size, tokens = bounds[sequences];
  size_t memory = 2 * row_words(padded, size, half) + across_words(padded, size, half) +
                  down_words(padded, size, half) + QUERIES * size + 96 * 1024 + ROWS * (padded + LANES) +
                  QUERIES * LANES;
  int failed = 0;
#pragma omp parallel num_threads(threads) if (sequences * heads > 1)
  {
    float *mine = scratch_of(memory);
    if (!mine) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, 1) nowait
    for (long item = sequences * heads - 1; item >= 0; item--) { // callers put the longest last
      if (!mine) continue;
      long s = item / heads, h = item % heads, first = bounds[s], column = h * size;
      Head head = {cos ? cos + first * size : NULL, cos ? sin + first * size : NULL, bounds[s + 1] - first, size, half};
      const char *q = qkv + at(first * 3 * width + column, half);
      const char *k = q + at(width, half), *v = k + at(width, half);
      char *to = out + at(first * width + column, half);
      if (half)
        attend(&head, q, k, v, 3 * width, to, width, sums + h * tokens + first, mine, 1);
      else
        attend(&head, q, k, v, 3 * width, to, width, sums + h * tokens + first, mine, 0);
    }
  }
  return failed;
}

// The way back: from `grad`, the gradient of `out`, to that of `qkv`.
int attention_back(const char *qkv, const float *cos, const float *sin, const int32_t *bounds, long sequences,
                   long heads, long size, const char *out, const float *sums, const char *grad, char *grad_qkv,
                   int half, int threads) {
  long padded = up_to(longest_of(bounds, sequences), LANES), width = heads * size, tokens = bounds[sequences];
  size_t memory = back_words(padded, size, half);
  int failed = 0;
#pragma omp parallel num_threads(threads) if (sequences * heads > 1)
  {
    float *mine = scratch_of(memory);
    if (!mine) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, 1) nowait
    for (long item = sequences * heads - 1; item >= 0; item--) {
      if (!mine) continue;
      long s = item / heads, h = item % heads, first = bounds[s], column = h * size;
      Head head = {cos ? cos + first * size : NULL, cos ? sin + first * size : NULL, bounds[s + 1] - first, size, half};
      long from = at(first * 3 * width + column, half), part = at(width, half);
      long to = at(first * width + column, half);
      const char *q = qkv + from;
      char *g = grad_qkv + from;
      const float *of = sums + h * tokens + first;
      if (half)
        attend_back(&head, q, q + part, q + 2 * part, 3 * width, out + to, grad + to, width, of, g, g + part,
                    g + 2 * part, mine, 1);
      else
        attend_back(&head, q, q + part, q + 2 * part, 3 * width, out + to, grad + to, width, of, g, g + part,
                    g + 2 * part, mine, 0);
    }
  }
  return failed;
}
