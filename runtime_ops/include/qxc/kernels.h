/* Matrix products with packed low-bit weights, attention and norms, as a plain C library: no allocation, no threads,
 * no state.
 *
 *   Y = A W^T + bias      A [M, K] and Y [M, N] row-major, W [N, K] packed in the layout `tile16.v1` (docs/formats.md)
 *
 * One product is one `qxc_matmul`. The caller checks it once, brings the workspace, and calls from as many threads as
 * it likes, first qxc_matmul_prepare for disjoint ranges of the rows of A, then, when all of those have returned,
 * qxc_matmul_compute for disjoint ranges of tiles:
 *
 *   qxc_matmul product = {.kernels = qxc_kernels_for(NULL), .weight = weight, .activation = QXC_A8, ...};
 *   size_t bytes;
 *   if (qxc_matmul_check(&product, &bytes) != QXC_OK) ...
 *   product.workspace = aligned_alloc(QXC_ALIGNMENT, bytes);
 *   qxc_matmul_prepare(&product, 0, product.rows);
 *   qxc_matmul_compute(&product, 0, qxc_matmul_tiles(&product));
 */
#ifndef QXC_KERNELS_H
#define QXC_KERNELS_H

#include <stddef.h>
#include <stdint.h>

#define QXC_KERNELS_VERSION_MAJOR 1 /* grows when a caller has to change */
#define QXC_KERNELS_VERSION_MINOR 4
#define QXC_ALIGNMENT 64 /* of the workspace, in bytes */

/* Of `tile16.v1`: W is tiles of rows, a tile blocks of columns, and a block of b-bit codes b lines of bytes. */
#define QXC_TILE_ROWS 16
#define QXC_BLOCK_COLUMNS 32
#define QXC_LINE_BYTES 64

#if defined(__GNUC__)
#define QXC_API __attribute__((visibility("default")))
#else
#define QXC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef enum qxc_status {
  QXC_OK = 0,
  QXC_BAD_FORMAT = 1,   /* the code, bits and group size are no format of this library */
  QXC_BAD_SIZE = 2,     /* a dimension is not positive, or too large */
  QXC_BAD_ARGUMENT = 3, /* a pointer that is needed is null, or an enumerator is unknown */
} qxc_status;

/* How a code becomes a number. */
typedef enum qxc_code {
  QXC_INT = 0,  /* scale * (code - 2^(bits-1)) */
  QXC_UINT = 1, /* scale * (code - zero point) */
  QXC_LUT = 2,  /* scale * codebook[code] */
  QXC_FP = 3,   /* scale * E2M1(code): OCP Microscaling Formats 1.0 */
  QXC_E2M3 = 4, /* scale * E2M3(code), likewise */
  QXC_E3M2 = 5,
  QXC_E4M3 = 6,
  QXC_E5M2 = 7,
} qxc_code;

/* How the scale of a row's group is stored, whatever the codes are. */
typedef enum qxc_scale {
  QXC_SCALE_FLOAT16 = 0,   /* float16 */
  QXC_SCALE_E8M0 = 1,      /* a byte: 2^(byte-127) */
  QXC_SCALE_TWO_LEVEL = 2, /* a byte: byte / 256 of the row's scale, a float16 */
} qxc_scale;

/* What the numbers of A are rounded to. */
typedef enum qxc_activation {
  QXC_A8 = 0,  /* 8-bit integers, a scale a row; products are added up exactly */
  QXC_A16 = 1, /* 16-bit integers, a scale for at most 128 numbers; likewise */
  QXC_A32 = 2, /* not rounded; products are added up as float32 */
} qxc_activation;

typedef enum qxc_element { QXC_FLOAT32 = 0, QXC_FLOAT16 = 1 } qxc_element;

/* What becomes of A W^T + bias. */
typedef enum qxc_epilogue {
  QXC_NO_EPILOGUE = 0,
  QXC_SILU_GATE = 1, /* silu(gate) * up: tiles of W are gate and up in turn, and N is a multiple of 32 */
} qxc_epilogue;

/* W [N, K]. No pointer needs an alignment; 64 bytes are best for `packed`. */
typedef struct qxc_weight {
  qxc_code code;
  qxc_scale scale;
  int32_t bits;                /* QXC_INT, QXC_UINT: 2, 3, 4, 5, 6, 8; QXC_LUT: 2, 3, 4; QXC_FP: 4; others: 6, 8 */
  int64_t rows;                /* N, output features */
  int64_t columns;             /* K, input features */
  int64_t group_size;          /* 16, 32, 64, 128, 256 or K */
  int32_t codebook_per_tensor; /* QXC_LUT: 1 for one codebook, 0 for one a row */
  const void* packed;
  const void* scales;      /* float16; QXC_SCALE_E8M0, QXC_SCALE_TWO_LEVEL: uint8 */
  const void* row_scales;  /* float16, QXC_SCALE_TWO_LEVEL only */
  const void* zero_points; /* uint8, QXC_UINT only */
  const void* codebook;    /* int8, QXC_LUT only */
} qxc_weight;

/* Bytes of a weight's tensors; 0 for one that its format lacks. */
typedef struct qxc_weight_bytes {
  size_t packed, scales, row_scales, zero_points, codebook;
} qxc_weight_bytes;

/* The kernels for one instruction set. */
typedef struct qxc_kernels qxc_kernels;

typedef struct qxc_matmul {
  const qxc_kernels* kernels;
  qxc_weight weight;
  qxc_activation activation;
  qxc_element element; /* of A and Y */
  qxc_epilogue epilogue;
  int64_t rows;      /* M, at least 1 */
  const void* a;     /* [M, K] */
  void* y;           /* [M, N]; QXC_SILU_GATE: [M, N / 2] */
  const float* bias; /* [N] with bias_stride 1; one number for all with bias_stride 0; or null */
  int64_t bias_stride;
  void* workspace; /* as many bytes as qxc_matmul_check says, aligned to QXC_ALIGNMENT */
} qxc_matmul;

/* 256 * major + minor of the library that is running. */
QXC_API int32_t qxc_kernels_version(void);

/* The kernels of an instruction set by name (avx512, avx_vnni, avx2, neon_i8mm, neon_dotprod, neon, portable), or
 * the best ones of this processor for null. Null where the name is unknown, or the processor or the build lacks it. */
QXC_API const qxc_kernels* qxc_kernels_for(const char* instruction_set);
/* The kernels that this processor can run, best first; null beyond the last. */
QXC_API const qxc_kernels* qxc_kernels_at(int32_t place);
QXC_API const char* qxc_kernels_name(const qxc_kernels* kernels);

/* Checks the sizes of a weight, whose pointers are not read, and gives the bytes that its tensors must have. */
QXC_API qxc_status qxc_weight_check(const qxc_weight* weight, qxc_weight_bytes* bytes);

/* Checks a product, whose workspace need not be set yet, and gives the bytes of its workspace. The functions below
 * check nothing. */
QXC_API qxc_status qxc_matmul_check(const qxc_matmul* product, size_t* workspace_bytes);

/* Rounds rows [first, last) of A into the workspace. */
QXC_API void qxc_matmul_prepare(const qxc_matmul* product, int64_t first_row, int64_t last_row);

/* Tiles, of QXC_TILE_ROWS rows of W, of a product. */
QXC_API int64_t qxc_matmul_tiles(const qxc_matmul* product);

/* Computes the columns of Y that belong to tiles [first, last). Even numbers of tiles are fastest; with
 * QXC_SILU_GATE, both `first` and `last` must be even. */
QXC_API void qxc_matmul_compute(const qxc_matmul* product, int64_t first_tile, int64_t last_tile);

/* Rotates the inputs of weights that are stored for rotated ones: Y = X R, of [rows, columns], row-major. R is
 * block-diagonal, of blocks D H / sqrt(block_size) (docs/formats.md). The block size is 8, 16, 32 or 64, and divides
 * `columns`: for anything else QXC_BAD_SIZE. Y may be X. */
QXC_API qxc_status qxc_rotate(const qxc_kernels* kernels, qxc_element element, int64_t rows, int64_t columns,
                              int64_t block_size, const void* x, void* y);

/* How the rows of a cache, [D] for a token of a head, are kept. In integers, a row is its codes, then the upper two
 * bytes of a float32, its scale (docs/formats.md). They are rounded as they are appended, and attended to so. */
typedef enum qxc_cache {
  QXC_CACHE_FLOAT = 1, /* as numbers of the element type */
  QXC_CACHE_INT8 = 2,  /* D + 2 bytes: scale * (code - 128) */
  QXC_CACHE_INT4 = 3,  /* (D + 1) / 2 + 2 bytes: scale * (code - 7.5), of rows that are rotated as by qxc_rotate */
} qxc_cache;

/* Y = softmax(softcap(scale Q K^T) + mask) V for each head. H query heads share G heads of keys and values, H / G
 * neighbors one. All tensors are row-major, and of one element type, but for a cache in integers; sums and exponentials
 * are float32.
 *
 * With a cache, the T keys and values end in the L new ones. The rows before them are those of `past`, [B, G, P, row]
 * with P of at least T - L, and `present`, [B, G, max(P, T), row], becomes `past` with the new ones in rows T - L to T.
 * Where both are the same memory, which P of at least T allows, nothing else is written. */
typedef struct qxc_attention {
  const qxc_kernels* kernels;
  qxc_element element;   /* of all tensors, but for a cache in integers */
  int64_t batch;         /* B */
  int64_t length;        /* L, queries */
  int64_t tokens;        /* T, keys; with a cache at least L, with a rotary embedding and no cache L */
  int64_t heads;         /* H */
  int64_t kv_heads;      /* G, which divides H */
  int64_t head_size;     /* D */
  float scale;           /* of products of query and key */
  float softcap;         /* c tanh(x / c), after the scale; 0 for none */
  const void* query;     /* [B, L, H D] */
  const void* key;       /* [B, T, G D]; with a cache [B, L, G D] */
  const void* value;     /* likewise */
  const void* mask;      /* added; minus infinity for a key that is left out. Zeros come out where all are */
  int64_t mask_shape[4]; /* [B, H, L, T], any of them 1 */
  int64_t rotary_size;   /* R, even: how many channels of queries and new keys are rotated, by halves; 0 for none */
  int64_t rotary_batch;  /* b, 1 or B */
  const void* cos;       /* [b, L, R] */
  const void* sin;
  int32_t has_cache;   /* a qxc_cache, or 0 for none */
  int64_t past_tokens; /* P */
  const void *past_key, *past_value;
  void *present_key, *present_value;
  void* y;         /* [B, L, H D] */
  int64_t workers; /* how many calls of qxc_attention_compute may run at once */
  void* workspace; /* as many bytes as qxc_attention_check says, aligned to QXC_ALIGNMENT */
} qxc_attention;

/* One after the other; each has tasks that may run at once. */
typedef enum qxc_attention_phase {
  QXC_APPEND = 0,  /* new keys and values, rotated, to the present ones */
  QXC_ATTEND = 1,  /* queries, to all keys or to a piece of them */
  QXC_COMBINE = 2, /* pieces */
} qxc_attention_phase;

/* Checks an attention, whose workspace need not be set yet, and gives the bytes of its workspace. The functions below
 * check nothing. What comes out does not depend on `workers`. */
QXC_API qxc_status qxc_attention_check(const qxc_attention* attention, size_t* workspace_bytes);

/* Tasks of a phase: none where there is nothing to do. */
QXC_API int64_t qxc_attention_tasks(const qxc_attention* attention, qxc_attention_phase phase);

/* Runs tasks [first, last) of a phase. Of the calls that run at once, each has a worker of its own, below `workers`. */
QXC_API void qxc_attention_compute(const qxc_attention* attention, qxc_attention_phase phase, int64_t worker,
                                   int64_t first, int64_t last);

/* Y = (S - mean) / sqrt(variance + epsilon) * gain + bias, by row of S = X + skip. Sums are float32. */
typedef struct qxc_norm {
  const qxc_kernels* kernels;
  qxc_element element; /* of X, skip, the sum and Y */
  int32_t is_centered; /* 1: LayerNorm; 0: RMSNorm, which takes each row's mean for 0 */
  float epsilon;       /* at least 0 */
  int64_t rows;        /* M */
  int64_t columns;     /* N, at least 1 */
  const void* x;       /* [M, N] */
  const void* skip;    /* [M, N], or null */
  const float* gain;   /* [N] */
  const float* bias;   /* [N], or null */
  void* sum;           /* S, [M, N], where there is a skip; may be X or skip */
  void* y;             /* [M, N]; may be S */
} qxc_norm;

QXC_API qxc_status qxc_norm_check(const qxc_norm* norm);

/* Computes rows [first, last), of a norm that has been checked. Disjoint ranges may run at once. */
QXC_API void qxc_norm_compute(const qxc_norm* norm, int64_t first_row, int64_t last_row);

/* Decodes columns [first, last) of one row of a weight. */
QXC_API void qxc_weight_decode_row(const qxc_weight* weight, int64_t row, int64_t first_column, int64_t last_column,
                                   float* values);

#ifdef __cplusplus
}
#endif

#endif
