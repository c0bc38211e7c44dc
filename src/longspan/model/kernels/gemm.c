// Matrix products in vector registers (AVX512-BF16, AVX512-VNNI), for processors without a matrix unit.
//
// A panel is 64 outputs' weights: for every group of inputs four vectors with one group of 16 outputs each. It is read
// from the second level of the cache while its products with some rows stay in registers. Nothing but the epilogue
// rounds integers, and in bfloat16 every sum has one order whatever the number of rows: a row's result is its own.

#include "microkernel.h"

#define COLUMNS 4 // vectors of 16 outputs
#define PANEL (COLUMNS * LANES)
#define ROWS 6
#define CHUNK (384 << 10) // bytes of rows that stay in a core's second level of the cache beside a panel

// What a product multiplies, (rows, 4 * groups bytes) by panels of `groups` groups, and what is put to its sums: of
// integers `step` and `middle` per row and `scale` and `sums` per output, so that they mean what the rows meant; `bias`
// or NULL. Numbers per output reach to the end of the last panel.
typedef struct {
  const char *x, *weights;
  const float *step, *middle, *scale, *sums, *bias;
  long rows, groups, outputs;
  uint16_t *out;
} Factors;

INLINE void multiply_block(const int rows, const int kind, const Factors *f, long row, long panel) {
  __m512i sums[rows][COLUMNS];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < COLUMNS; j++) sums[i][j] = _mm512_setzero_si512();
  long bytes = f->groups * 4, first = panel * PANEL;
  accumulate(rows, COLUMNS, kind, f->x + row * bytes, bytes, f->weights + first * bytes, 64, 64 * COLUMNS, f->groups,
             sums);
#pragma GCC unroll 8
  for (int j = 0; j < COLUMNS; j++) {
    long column = first + j * LANES;
    if (column >= f->outputs) break;
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      f32x16 y = (f32x16)sums[i][j];
      if (kind == INT8) {
        y = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][j]), _mm512_load_ps(f->scale + column));
        y = _mm512_mul_ps(y, spread(f->step[row + i]));
        y = _mm512_fmadd_ps(spread(f->middle[row + i]), _mm512_load_ps(f->sums + column), y);
      }
      if (f->bias) y = _mm512_add_ps(y, _mm512_load_ps(f->bias + column));
      store_narrow(f->out + (row + i) * f->outputs + column, y);
    }
  }
}

INLINE void multiply_rows(const int kind, const Factors *f, long start, long end, long panel) {
  for (long row = start; row < end;) {
#define CASE(n)                                                                                             \
  case n:                                                                                                   \
    multiply_block(n, kind, f, row, panel);                                                                 \
    row += n;                                                                                               \
    break;
    switch (end - row) {
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
}

static void multiply_bfloat16(const Factors *f, long start, long end, long panel) {
  multiply_rows(BFLOAT16, f, start, end, panel);
}

static void multiply_int8(const Factors *f, long start, long end, long panel) {
  multiply_rows(INT8, f, start, end, panel);
}

// x @ weights.T, (rows, outputs), in bfloat16; `kind` and the other arguments as in `Factors`.
void multiply(int kind, const char *x, const float *step, const float *middle, long rows, long groups,
              const char *weights, const float *scale, const float *sums, const float *bias, long outputs,
              uint16_t *out, int threads) {
  const Factors f = {x, weights, step, middle, scale, sums, bias, rows, groups, outputs, out};
  long panels = (outputs + PANEL - 1) / PANEL, most = CHUNK / (groups * 4);
  long chunks = (rows + most - 1) / most, share = ((rows + chunks - 1) / chunks + ROWS - 1) / ROWS * ROWS;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (long item = 0; item < chunks * panels; item++) {
    long start = item / panels * share, end = start + share < rows ? start + share : rows;
    if (kind == INT8)
      multiply_int8(&f, start, end, item % panels);
    else
      multiply_bfloat16(&f, start, end, item % panels);
  }
}
