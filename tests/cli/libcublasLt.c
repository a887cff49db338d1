// cuBLASLt for tests: writes down what it is asked to the file FAKE_CUBLASLT_LOG names, and computes nothing.

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { int type; uint64_t rows, columns; int64_t stride; } Layout;

static FILE *file(void) {
    static FILE *opened;
    if (!opened) opened = fopen(getenv("FAKE_CUBLASLT_LOG"), "a");
    setvbuf(opened, NULL, _IOLBF, 0);
    return opened;
}

int cublasLtCreate(void **handle) { *handle = malloc(1); return 0; }
int cublasLtDestroy(void *handle) { fprintf(file(), "lt destroy\n"); free(handle); return 0; }
int cublasLtMatrixLayoutCreate(Layout **layout, int type, uint64_t rows, uint64_t columns, int64_t stride) {
    *layout = malloc(sizeof **layout);
    **layout = (Layout){type, rows, columns, stride};
    return 0;
}
int cublasLtMatrixLayoutDestroy(Layout *layout) { free(layout); return 0; }
int cublasLtMatmulDescCreate(int **product, int compute, int scale) {
    *product = calloc(1, sizeof **product);
    return compute == 68 && scale == 0 ? 0 : 7;
}
int cublasLtMatmulDescSetAttribute(int *product, int which, const void *value, size_t bytes) {
    if (which != 3 || bytes != 4) return 7;
    memcpy(product, value, 4);
    return 0;
}
int cublasLtMatmulDescDestroy(int *product) { free(product); return 0; }
int cublasLtMatmulPreferenceCreate(void **preference) { *preference = malloc(1); return 0; }
int cublasLtMatmulPreferenceSetAttribute(void *preference, int which, const uint64_t *value, size_t bytes) {
    fprintf(file(), "lt preference %d is %llu\n", which, bytes == 8 ? (unsigned long long)*value : *(const unsigned *)value);
    return bytes == (which == 1 ? 8 : 4) ? 0 : 7;
}
int cublasLtMatmulPreferenceDestroy(void *preference) { free(preference); return 0; }

typedef struct { uint64_t data[8]; } Algorithm;
typedef struct { Algorithm algorithm; size_t workspace; int state; float waves; int reserved[4]; } Heuristic;

static void show(const char *name, const Layout *l) {
    fprintf(file(), " %s type %d %llu x %llu by %lld", name, l->type, (unsigned long long)l->rows,
            (unsigned long long)l->columns, (long long)l->stride);
}
int cublasLtMatmulAlgoGetHeuristic(void *handle, int *product, Layout *a, Layout *b, Layout *c, Layout *d, void *preference,
                                   int wanted, Heuristic *found, int *count) {
    fprintf(file(), "lt choose, transposed %d:", *product);
    show("a", a), show("b", b), show("d", d);
    fprintf(file(), "\n");
    memset(found, 0, sizeof *found);
    found->algorithm.data[3] = 42;
    *count = 1;
    return 0;
}
int cublasLtMatmul(void *handle, int *product, const float *alpha, const void *a, Layout *la, const void *b, Layout *lb,
                   const float *beta, const void *c, Layout *lc, void *d, Layout *ld, const Algorithm *algorithm,
                   void *workspace, size_t bytes, void *stream) {
    if (ld->columns == 13) return 15;
    fprintf(file(), "lt product %g %g by algorithm %llu, %zu bytes, %s\n", *alpha, *beta,
            (unsigned long long)algorithm->data[3], bytes, stream && a && b && c == d && workspace ? "all there" : "null");
    return 0;
}
