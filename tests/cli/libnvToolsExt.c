// NVTX for tests: writes ranges, indented as they nest, to the file FAKE_NVTX_LOG names.

#include <stdio.h>
#include <stdlib.h>

static FILE *file;
static int depth;

int nvtxRangePushA(const char *name) {
    if (!file) file = fopen(getenv("FAKE_NVTX_LOG"), "a");
    fprintf(file, "%*s%s\n", 2 * depth++, "", name);
    fflush(file);
    return depth;
}
int nvtxRangePop(void) { return --depth; }
