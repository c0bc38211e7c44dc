// Matrix products in vector registers (AVX-512 with its bfloat16 and VNNI), for processors without a matrix unit.
//
// A panel is 64 outputs' weights: for every group of inputs four vectors with one group of 16 outputs each. It is read
// from the second level of the cache while its products with some rows stay in registers. What follows a product is done
// while its block is at hand: integers become what they stand for, bias, activation and gate. In a gated layer a panel
// has 32 outputs, and then the gates of the same 32.
//
// Integers are summed exactly, and every other sum has one order whatever the number of rows: a row's result is its own.

#include "activation.h"
#include "microkernel.h"

#define PANEL (COLUMNS * LANES)
#define CHUNK (384 << 10) // bytes of rows that stay in a core's second level of the cache beside a panel

// What a product multiplies, (rows, 4 * groups bytes) by panels of `groups` groups, and what is put to its sums: of
// integers `step` and `middle` per row and `scale` and `sums` per column of the panels, so that they mean what the rows
// meant; `bias` per column or NULL; an activation or NONE. `outputs` are what is left after the gate.
typedef struct {
  const char *x, *weights;
  const float *step, *middle, *scale, *sums, *bias;
  long rows, groups, outputs;
  int activation, gated;
  void *out;
} Factors;

// A block's sums as numbers, 16 of row `row`, from column `column` of all panels.
INLINE f32x16 restored_sum(const int kind, const Factors *f, const float *sums, long row, long column) {
  f32x16 v = _mm512_load_ps(sums);
  if (kind == INT8) {
    v = _mm512_mul_ps(_mm512_cvtepi32_ps((__m512i)v), _mm512_load_ps(f->scale + column));
    v = _mm512_fmadd_ps(spread(f->middle[row]), _mm512_load_ps(f->sums + column), _mm512_mul_ps(v, spread(f->step[row])));
  }
  return f->bias ? _mm512_add_ps(v, _mm512_load_ps(f->bias + column)) : v;
}

// A block's sums through activation and gate, to bfloat16 or (of FLOAT32) to float32.
INLINE void finish_block(const int kind, const int function, const int gated, const Factors *f,
                         const float sums[ROWS][PANEL], long row, long rows, long panel) {
  const long width = gated ? PANEL / 2 : PANEL, first = panel * width;
  const int coarse = kind != FLOAT32;
  for (long i = 0; i < rows; i++)
    for (long j = 0; j < width && first + j < f->outputs; j += LANES) {
      f32x16 v = restored_sum(kind, f, sums[i] + j, row + i, panel * PANEL + j);
      if (gated) {
        f32x16 gate = restored_sum(kind, f, sums[i] + width + j, row + i, panel * PANEL + width + j);
        v = _mm512_mul_ps(v, activation(gate, function, coarse));
      } else if (function != NONE) {
        v = activation(v, function, coarse);
      }
      long place = (row + i) * f->outputs + first + j;
      if (kind == FLOAT32)
        _mm512_storeu_ps((float *)f->out + place, v);
      else
        store_narrow((uint16_t *)f->out + place, v);
    }
}

INLINE void multiply_rows(const int kind, const Factors *f, long start, long end, long panel) {
  float sums[ROWS][PANEL] ALIGNED;
  long bytes = f->groups * 4;
  for (long row = start; row < end; row += ROWS) {
    long rows = end - row < ROWS ? end - row : ROWS;
    multiply_tile_of(rows, COLUMNS, kind, f->x + row * bytes, bytes, f->weights + panel * PANEL * bytes, 64,
                     64 * COLUMNS, f->groups, (char *)sums, sizeof *sums);
#define CASE(FUNCTION, GATED)                                                                               \
  if (f->activation == FUNCTION && f->gated == GATED)                                                       \
    finish_block(kind, FUNCTION, GATED, f, sums, row, rows, panel);
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

static void multiply_float32(const Factors *f, long start, long end, long panel) {
  multiply_rows(FLOAT32, f, start, end, panel);
}

// activation(x @ weights.T), (rows, outputs), in bfloat16 or (of FLOAT32) in float32; `kind` and the other arguments as in
// `Factors`.
void multiply(int kind, const char *x, const float *step, const float *middle, long rows, long groups,
              const char *weights, const float *scale, const float *sums, const float *bias, long outputs,
              int activation, int gated, void *out, int threads) {
  if (rows == 0) return;
  const Factors f = {x, weights, step, middle, scale, sums, bias, rows, groups, outputs, activation, gated, out};
  long width = gated ? PANEL / 2 : PANEL, panels = (outputs + width - 1) / width, most = CHUNK / (groups * 4);
  long chunks = (rows + most - 1) / most, wanted = 16 * threads / panels + 1;
  // Threads that take many parts in turn wait little at the end; but parts of few rows read weights too often.
  if (wanted > rows / 64) wanted = rows / 64;
  if (chunks < wanted) chunks = wanted;
  long share = ((rows + chunks - 1) / chunks + ROWS - 1) / ROWS * ROWS;
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (long item = 0; item < chunks * panels; item++) {
    long start = item / panels * share, end = start + share < rows ? start + share : rows;
    if (kind == INT8)
      multiply_int8(&f, start, end, item % panels);
    else if (kind == FLOAT32)
      multiply_float32(&f, start, end, item % panels);
    else
      multiply_bfloat16(&f, start, end, item % panels);
  }
}
