// Matrix products in vector registers (AVX512-BF16, AVX512-VNNI), for processors without a matrix unit.
//
// A panel is 64 outputs' weights: for every group of inputs four vectors with one group of 16 outputs each. It is read
// from the second level of the cache while its products with some rows stay in registers. What follows a product is done
// while its block is at hand: integers become what they stand for, bias, activation and gate. In a gated layer a panel
// has 32 outputs, and then the gates of the same 32.
//
// Integers are summed exactly, and in bfloat16 every sum has one order whatever the number of rows: a row's result is
// its own.

#include "activation.h"
#include "microkernel.h"

#define COLUMNS 4 // vectors of 16 outputs
#define PANEL (COLUMNS * LANES)
#define ROWS 6
#define CHUNK (384 << 10) // bytes of rows that stay in a core's second level of the cache beside a panel

// What a product multiplies, (rows, 4 * groups bytes) by panels of `groups` groups, and what is put to its sums: of
// integers `step` and `middle` per row and `scale` and `sums` per column of the panels, so that they mean what the rows
// meant; `bias` per column or NULL; an activation or NONE. `outputs` are what is left after the gate.
typedef struct {
  const char *x, *weights;
  const float *step, *middle, *scale, *sums, *bias;
  long rows, groups, outputs;
  int activation, gated;
  uint16_t *out;
} Factors;

// A block's sums as numbers, with the bias.
INLINE void multiply_block(const int rows, const int kind, const Factors *f, long row, long panel,
                           float y[ROWS][PANEL]) {
  __m512i sums[rows][COLUMNS];
  for (int i = 0; i < rows; i++)
    for (int j = 0; j < COLUMNS; j++) sums[i][j] = _mm512_setzero_si512();
  long bytes = f->groups * 4, first = panel * PANEL;
  accumulate(rows, COLUMNS, kind, f->x + row * bytes, bytes, f->weights + first * bytes, 64, 64 * COLUMNS, f->groups,
             sums);
#pragma GCC unroll 8
  for (int j = 0; j < COLUMNS; j++) {
    long column = first + j * LANES;
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
      f32x16 v = (f32x16)sums[i][j];
      if (kind == INT8) {
        v = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[i][j]), _mm512_load_ps(f->scale + column));
        v = _mm512_mul_ps(v, spread(f->step[row + i]));
        v = _mm512_fmadd_ps(spread(f->middle[row + i]), _mm512_load_ps(f->sums + column), v);
      }
      if (f->bias) v = _mm512_add_ps(v, _mm512_load_ps(f->bias + column));
      _mm512_store_ps(y[i] + j * LANES, v);
    }
  }
}

// A block through activation and gate, to bfloat16.
INLINE void finish_block(const int kind, const int gated, const Factors *f, float y[ROWS][PANEL], long row, long rows,
                         long panel) {
  const long width = gated ? PANEL / 2 : PANEL, first = panel * width;
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < width && first + j < f->outputs; j += LANES) {
      f32x16 v = _mm512_load_ps(y[i] + j);
      if (gated)
        v = _mm512_mul_ps(v, activation(_mm512_load_ps(y[i] + width + j), kind));
      else if (kind != NONE)
        v = activation(v, kind);
      store_narrow(f->out + (row + i) * f->outputs + first + j, v);
    }
}

INLINE void multiply_rows(const int kind, const Factors *f, long start, long end, long panel) {
  float y[ROWS][PANEL] ALIGNED;
  for (long row = start; row < end; row += ROWS) {
    long rows = end - row < ROWS ? end - row : ROWS;
#define CASE(n)                                                                                             \
  case n:                                                                                                   \
    multiply_block(n, kind, f, row, panel, y);                                                              \
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
#define CASE(KIND, GATED)                                                                                   \
  if (f->activation == KIND && f->gated == GATED) finish_block(KIND, GATED, f, y, row, rows, panel);
    CASE(NONE, 0)
    CASE(SILU, 1)
    CASE(GELU, 1)
    CASE(GELU, 0)
    CASE(GELU_TANH, 0)
    CASE(RELU, 0)
#undef CASE
  }
}

static void multiply_bfloat16(const Factors *f, long start, long end, long panel) {
  multiply_rows(BFLOAT16, f, start, end, panel);
}

static void multiply_int8(const Factors *f, long start, long end, long panel) {
  multiply_rows(INT8, f, start, end, panel);
}

// activation(x @ weights.T), (rows, outputs), in bfloat16; `kind` and the other arguments as in `Factors`.
void multiply(int kind, const char *x, const float *step, const float *middle, long rows, long groups,
              const char *weights, const float *scale, const float *sums, const float *bias, long outputs,
              int activation, int gated, uint16_t *out, int threads) {
  const Factors f = {x, weights, step, middle, scale, sums, bias, rows, groups, outputs, activation, gated, out};
  long width = gated ? PANEL / 2 : PANEL, panels = (outputs + width - 1) / width, most = CHUNK / (groups * 4);
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
