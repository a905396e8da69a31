/* Multiplies with a packed weight on two threads, with the C library alone.
 *
 *     multiply CODE BITS SCALE N K GROUP_SIZE ACTIVATION FOLDER
 *
 * computes Y = A W^T, for W [N, K] with a CODE of int, uint, lut (a codebook a row), lut_per_tensor, fp, e2m3, e3m2,
 * e4m3 or e5m2, a SCALE of float16, e8m0 or two_level, and an ACTIVATION of a8, a16 or a32. FOLDER holds, as raw
 * little-endian numbers, packed.bin, scales.bin, row_scales.bin (two_level only), zero_points.bin (uint only) and
 * codebook.bin (lut only) as docs/formats.md describes them, and a.bin: float32 [M, K], for any M. Writes y.bin,
 * float32 [M, N], beside them.
 */
#include <errno.h>
#include <pthread.h>
#include <qxc/kernels.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static _Noreturn void fail(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  fputs("multiply: error: ", stderr);
  vfprintf(stderr, format, arguments);
  fputc('\n', stderr);
  va_end(arguments);
  exit(2);
}

/* Memory aligned as the workspace has to be; whole lines of the cache are best for packed weights too. */
static void* allocate(size_t bytes) {
  void* memory = aligned_alloc(QXC_ALIGNMENT, (bytes / QXC_ALIGNMENT + 1) * QXC_ALIGNMENT);
  if (!memory) fail("%zu bytes: out of memory", bytes);
  return memory;
}

static FILE* open_in(const char* folder, const char* name, const char* mode) {
  char path[4096];
  if (snprintf(path, sizeof path, "%s/%s", folder, name) >= (int)sizeof path) fail("%s: too long a path", folder);
  FILE* file = fopen(path, mode);
  if (!file) fail("%s: %s", path, strerror(errno));
  return file;
}

static size_t file_size(const char* folder, const char* name) {
  FILE* file = open_in(folder, name, "rb");
  const long size = fseek(file, 0, SEEK_END) == 0 ? ftell(file) : -1;
  if (size < 0) fail("%s/%s: %s", folder, name, strerror(errno));
  fclose(file);
  return (size_t)size;
}

/* Reads a file that must have so many bytes; null where the format has no such tensor. */
static void* read_tensor(const char* folder, const char* name, size_t bytes) {
  if (bytes == 0) return NULL;
  const size_t size = file_size(folder, name);
  if (size != bytes) fail("%s/%s: has %zu bytes, but the sizes given take %zu", folder, name, size, bytes);
  FILE* file = open_in(folder, name, "rb");
  void* tensor = allocate(bytes);
  if (fread(tensor, 1, bytes, file) != bytes) fail("%s/%s: cannot be read", folder, name);
  fclose(file);
  return tensor;
}

static void write_tensor(const char* folder, const char* name, const void* tensor, size_t bytes) {
  FILE* file = open_in(folder, name, "wb");
  const size_t written = fwrite(tensor, 1, bytes, file);
  if (fclose(file) != 0 || written != bytes) fail("%s/%s: cannot be written", folder, name);
}

/* The place of `text` in a list of names that ends with null. */
static int choice(const char* what, const char* text, const char* const* names) {
  int i = 0;
  while (names[i] && strcmp(names[i], text) != 0) ++i;
  if (!names[i]) fail("%s: %s is unknown", what, text);
  return i;
}

static int64_t number(const char* what, const char* text) {
  char* end;
  errno = 0;
  const long long value = strtoll(text, &end, 10);
  if (errno || end == text || *end || value < 1 || value > INT32_MAX) fail("%s: %s is no size", what, text);
  return value;
}

static void require(qxc_status status) {
  switch (status) {
    case QXC_OK: return;
    case QXC_BAD_FORMAT: fail("the library has no format of this code, bits and group size");
    case QXC_BAD_SIZE: fail("the matrices are too large");
    case QXC_BAD_ARGUMENT: fail("the library was called with a wrong argument");
  }
}

/* qxc_matmul_prepare or qxc_matmul_compute, on a range of rows or tiles. */
typedef struct {
  void (*function)(const qxc_matmul* product, int64_t first, int64_t last);
  const qxc_matmul* product;
  int64_t first, last;
} part;

static void* run(void* argument) {
  const part* work = argument;
  work->function(work->product, work->first, work->last);
  return NULL;
}

/* Runs [0, middle) here and [middle, count) on a second thread, and waits for it. */
static void run_in_two(part work, int64_t middle, int64_t count) {
  part second = work;
  second.first = middle;
  second.last = count;
  work.first = 0;
  work.last = middle;
  pthread_t thread;
  const int error = pthread_create(&thread, NULL, run, &second);
  if (error) fail("cannot start a thread: %s", strerror(error));
  run(&work);
  pthread_join(thread, NULL);
}

int main(int argc, char** argv) {
  /* in the order of qxc_code, qxc_scale and qxc_activation */
  static const char* const codes[] = {"int", "uint", "lut", "fp", "e2m3", "e3m2", "e4m3", "e5m2", NULL};
  static const char* const scales[] = {"float16", "e8m0", "two_level", NULL};
  static const char* const activations[] = {"a8", "a16", "a32", NULL};
  if (argc != 9) fail("usage: multiply CODE BITS SCALE N K GROUP_SIZE ACTIVATION FOLDER");
  const char* folder = argv[8];
  const int per_tensor = strcmp(argv[1], "lut_per_tensor") == 0;

  /* The weight: the library says how many bytes each tensor has. */
  qxc_weight weight = {
      .code = per_tensor ? QXC_LUT : (qxc_code)choice("CODE", argv[1], codes),
      .bits = (int32_t)number("BITS", argv[2]),
      .scale = (qxc_scale)choice("SCALE", argv[3], scales),
      .rows = number("N", argv[4]),
      .columns = number("K", argv[5]),
      .group_size = number("GROUP_SIZE", argv[6]),
      .codebook_per_tensor = per_tensor,
  };
  qxc_weight_bytes bytes;
  require(qxc_weight_check(&weight, &bytes));
  weight.packed = read_tensor(folder, "packed.bin", bytes.packed);
  weight.scales = read_tensor(folder, "scales.bin", bytes.scales);
  weight.row_scales = read_tensor(folder, "row_scales.bin", bytes.row_scales);
  weight.zero_points = read_tensor(folder, "zero_points.bin", bytes.zero_points);
  weight.codebook = read_tensor(folder, "codebook.bin", bytes.codebook);

  /* The product: A has as many rows as its file. */
  const size_t row_bytes = (size_t)weight.columns * sizeof(float);
  const size_t a_bytes = file_size(folder, "a.bin");
  if (a_bytes == 0 || a_bytes % row_bytes) fail("%s/a.bin: has %zu bytes, not rows of %zu", folder, a_bytes, row_bytes);
  const size_t M = a_bytes / row_bytes;
  const size_t y_bytes = M * (size_t)weight.rows * sizeof(float);
  qxc_matmul product = {
      .kernels = qxc_kernels_for(NULL), /* the best ones of this processor */
      .weight = weight,
      .activation = (qxc_activation)choice("ACTIVATION", argv[7], activations),
      .element = QXC_FLOAT32,
      .rows = (int64_t)M,
      .a = read_tensor(folder, "a.bin", a_bytes),
      .y = allocate(y_bytes),
  };
  size_t workspace_bytes;
  require(qxc_matmul_check(&product, &workspace_bytes));
  product.workspace = allocate(workspace_bytes);

  /* All rows are prepared before any tile is computed. */
  const int64_t tiles = qxc_matmul_tiles(&product);
  const int64_t even_half = tiles / 4 * 2; /* even numbers of tiles are fastest */
  run_in_two((part){.function = qxc_matmul_prepare, .product = &product}, product.rows / 2, product.rows);
  run_in_two((part){.function = qxc_matmul_compute, .product = &product}, even_half, tiles);

  write_tensor(folder, "y.bin", product.y, y_bytes);
  printf("[%zu, %lld] x [%lld, %lld]^T, %s kernels\n", M, (long long)weight.columns, (long long)weight.rows,
         (long long)weight.columns, qxc_kernels_name(product.kernels));
  return 0; /* and the memory goes with the process */
}
