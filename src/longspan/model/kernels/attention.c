// Attention: queries, keys and values are read from where the product left them, rotated on the way and laid out; the
// products of a block of queries are computed by the matrix unit or in vector registers, and the softmax between them here.

#include "common.h"

#define TILE 16 // keys, or coordinates of values, that lie beside each other in a right factor
#define BLOCK 32 // keys, and coordinates of queries, that are laid out together

#ifdef AMX
#include "attention_amx.h"
#else
#include "attention_avx512.h"
#endif

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
static void pack_values(const Head *head, long padded, uint32_t *values) {
  long column = head->queries + 2 * head->part;
  for (long t = 0; t < padded; t += 32)
    for (long k = 0; k < head->size; k += 16) {
      uint32_t *to = values + value_tile(t, k, padded, head->size);
      for (long i = t; i < t + 32; i += 2, to += 16) {
        __m512i pair = _mm512_setzero_si512();
        for (long j = i; j < i + 2 && j < head->length; j++) {
          __m512i wide = _mm512_cvtepu16_epi32(narrow(restored(head->qkv, head->first + j, column + k)));
          pair = _mm512_or_si512(pair, j == i ? wide : _mm512_slli_epi32(wide, 16));
        }
        _mm512_storeu_si512(to, pair);
      }
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

// Asks for what the next head of the sequence will read. For short sequences waiting for it would take half of the time.
static void fetch_next(const Head *head) {
  const Product *y = head->qkv;
  if (head->length > 256 || head->queries + head->size >= head->part) return;
  for (long t = 0; t < head->length; t++)
    for (int which = 0; which < 3; which++) {
      const uint16_t *next = y->values + (head->first + t) * y->width + head->queries + which * head->part + head->size;
      for (long i = 0; i < head->size; i += 32) _mm_prefetch((const char *)(next + i), _MM_HINT_T0);
    }
}

// The queries from `start` to `end` of one head.
static void attend(const Head *head, long start, long end, float scale, uint16_t *out, long out_stride, char *memory) {
  long padded = (head->length + BLOCK - 1) / BLOCK * BLOCK, size = head->size;
  uint32_t *keys = (uint32_t *)memory, *values = keys + padded * size / 2;
  uint16_t *queries = (uint16_t *)(values + padded * size / 2);
  char *scores = (char *)(queries + QUERIES * size);
  long stride = padded * sizeof(float) + 64; // not a power of two: rows would meet in the same lines of the cache
  float sums[QUERIES];
  fetch_next(head);
  pack_keys(head, padded, keys);
  pack_values(head, padded, values);
  for (long t = start; t < end; t += QUERIES) {
    long count = end - t < QUERIES ? end - t : QUERIES;
    for (long i = 0; i < count; i++) read_rotated(head, 0, t + i, queries + i * size);
    multiply_keys(queries, count, keys, padded, size, scores, stride);
    for (long i = 0; i < count; i++) sums[i] = soften(scores + i * stride, head->length, padded, scale);
    multiply_values(scores, stride, count, values, padded, size, sums, out + t * out_stride, out_stride);
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
  size_t memory = padded * size * 4 + QUERIES * size * 2 + QUERIES * (padded * sizeof(float) + 64);
  // Few heads for many threads: a head's queries are shared out, and its keys laid out several times.
  long cuts = sequences * heads >= 4 * threads ? 1 : (longest + 511) / 512;
  // Many sequences: a thread takes all heads of one, whose numbers lie side by side.
  long together = sequences >= 4 * threads ? heads : 1;
  int failed = 0;
#pragma omp parallel num_threads(threads) if (sequences * heads > 1)
  {
    Unit before;
    take_unit(&before);
    char *mine = scratch_of(memory);
    if (!mine) {
#pragma omp atomic write
      failed = 1;
    }
#pragma omp for schedule(dynamic, together) nowait
    for (long item = 0; item < sequences * heads * cuts; item++) {
      long s = item / (heads * cuts), h = item / cuts % heads, cut = item % cuts;
      long first = bounds[s], length = bounds[s + 1] - first;
      long share = cuts == 1 ? length : 512, start = cut * share, end = start + share < length ? start + share : length;
      if (!mine || start >= length) continue;
      Head head = {&qkv, cos, sin, first, h * size, width, size, length};
      attend(&head, start, end, scale, out + first * width + h * size, width, mine);
    }
    give_back_unit(&before);
  }
  return failed;
}
