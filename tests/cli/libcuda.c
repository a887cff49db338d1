// A driver for tests: device memory is the process's, launches are written down, graphs are replayed. What is wrong with it is
// chosen when it is compiled. Every call that matters is a line in the file FAKE_CUDA_LOG names.

#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef VERSION
#define VERSION 12040
#endif
#ifndef INIT
#define INIT 0
#endif
#ifndef DEVICES
#define DEVICES 1
#endif
#ifndef MAJOR
#define MAJOR 8
#endif
#ifndef MINOR
#define MINOR 0
#endif
#ifndef MIB_FREE
#define MIB_FREE 1024
#endif

typedef uint64_t Ptr;

enum { OK = 0, INVALID = 1, OUT_OF_MEMORY = 2, INVALID_PTX = 218, NOT_FOUND = 500, ILLEGAL_STATE = 401 };

static void say(const char *format, ...) {
    static FILE *file;
    const char *path = getenv("FAKE_CUDA_LOG");
    if (!path) return;
    if (!file) file = fopen(path, "a");
    va_list args;
    va_start(args, format);
    vfprintf(file, format, args);
    va_end(args);
    fputc('\n', file);
    fflush(file);
}

int cuGetErrorName(int code, const char **name) {
    switch (code) {
    case INVALID: *name = "CUDA_ERROR_INVALID_VALUE"; break;
    case OUT_OF_MEMORY: *name = "CUDA_ERROR_OUT_OF_MEMORY"; break;
    case 34: *name = "CUDA_ERROR_STUB_LIBRARY"; break;
    case 100: *name = "CUDA_ERROR_NO_DEVICE"; break;
    case INVALID_PTX: *name = "CUDA_ERROR_INVALID_PTX"; break;
    case NOT_FOUND: *name = "CUDA_ERROR_NOT_FOUND"; break;
    case 803: *name = "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH"; break;
    case 999: *name = "CUDA_ERROR_UNKNOWN"; break;
    default: return INVALID;
    }
    return OK;
}
int cuGetErrorString(int code, const char **text) {
    *text = code ? "as the fake has it" : "no error";
    return OK;
}

int cuDriverGetVersion(int *version) { *version = VERSION; return OK; }
int cuInit(unsigned flags) { return INIT; }
int cuDeviceGetCount(int *count) { *count = DEVICES; return OK; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal < DEVICES ? OK : INVALID; }
int cuDeviceGetName(char *name, int length, int device) { snprintf(name, length, "Fake %d", device); return OK; }
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)2048 << 20; return OK; }
int cuDeviceGetAttribute(int *value, int which, int device) {
    *value = which == 75 ? MAJOR : which == 76 ? MINOR : which == 16 ? 108 : which == 97 ? 166912 : 0;
    return OK;
}
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = (void *)(intptr_t)(device + 1); return OK; }
static __thread void *current;
int cuCtxSetCurrent(void *context) { current = context; return OK; }

// Memory. A pointer is written as the number of its allocation and an offset: addresses differ from run to run.

#define MOST 4096
static struct { Ptr at; size_t bytes; int live; } memory[MOST];
static int allocations;
static size_t in_use;

static const char *shown(Ptr ptr) {
    static char texts[8][64];
    static int turn;
    char *text = texts[turn++ % 8];
    for (int i = 0; i < allocations; i++)
        if (memory[i].live && ptr >= memory[i].at && ptr < memory[i].at + memory[i].bytes) {
            snprintf(text, 64, "m%d+%zu", i, (size_t)(ptr - memory[i].at));
            return text;
        }
    snprintf(text, 64, "%llu", (unsigned long long)ptr);
    return text;
}
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *free_bytes = ((size_t)MIB_FREE << 20) - in_use;
    *total = (size_t)2048 << 20;
    return current ? OK : INVALID;
}
int cuMemAlloc_v2(Ptr *ptr, size_t bytes) {
    if (!current) return INVALID;
    if (in_use + bytes > (size_t)MIB_FREE << 20 || allocations == MOST) return OUT_OF_MEMORY;
    *ptr = (Ptr)(uintptr_t)aligned_alloc(256, (bytes + 255) / 256 * 256);
    memory[allocations].at = *ptr;
    memory[allocations].bytes = bytes;
    memory[allocations].live = 1;
    in_use += bytes;
    say("alloc m%d of %zu", allocations++, bytes);
    return OK;
}
int cuMemFree_v2(Ptr ptr) {
    for (int i = 0; i < allocations; i++)
        if (memory[i].live && memory[i].at == ptr) {
            say("free m%d", i);
            memory[i].live = 0;
            in_use -= memory[i].bytes;
            free((void *)(uintptr_t)ptr);
            return OK;
        }
    return INVALID;
}
int cuMemHostAlloc(void **ptr, size_t bytes, unsigned flags) {
    say("pin %zu", bytes);
    *ptr = calloc(1, bytes);
    return current ? OK : INVALID;
}
int cuMemFreeHost(void *ptr) { say("unpin"); free(ptr); return OK; }

// Streams, events, graphs.

typedef struct Op { int kind; Ptr to, from; size_t bytes; unsigned char byte; char text[512]; struct Op *next; } Op;
typedef struct { int number, capturing; Op *first, **last; } Stream;
typedef struct { int number; Op *first; } Graph;
static int streams, events, graphs;

static void run(const Op *op, int stream) {
    if (op->kind == 0) say("s%d launch %s", stream, op->text);
    if (op->kind == 1) say("s%d copy %s to %s, %zu", stream, shown(op->from), shown(op->to), op->bytes);
    if (op->kind == 2) say("s%d fill %s with %d, %zu", stream, shown(op->to), op->byte, op->bytes);
    if (op->kind == 1) memmove((void *)(uintptr_t)op->to, (void *)(uintptr_t)op->from, op->bytes);
    if (op->kind == 2) memset((void *)(uintptr_t)op->to, op->byte, op->bytes);
}
static int submit(Stream *stream, Op op) {
    if (!current) return INVALID;
    if (!stream->capturing) return run(&op, stream->number), OK;
    Op *kept = malloc(sizeof *kept);
    *kept = op;
    kept->next = NULL;
    *stream->last = kept;
    stream->last = &kept->next;
    return OK;
}
int cuStreamCreate(Stream **stream, unsigned flags) {
    *stream = calloc(1, sizeof **stream);
    (*stream)->number = streams++;
    return flags == 1 ? OK : INVALID;
}
int cuStreamDestroy_v2(Stream *stream) { say("s%d destroy", stream->number); free(stream); return OK; }
int cuStreamSynchronize(Stream *stream) { say("s%d wait for all", stream->number); return OK; }
int cuStreamWaitEvent(Stream *stream, int *event, unsigned flags) {
    say("s%d waits for e%d", stream->number, *event);
    return OK;
}
int cuStreamBeginCapture_v2(Stream *stream, int mode) {
    say("s%d begin capture", stream->number);
    stream->capturing = 1;
    stream->first = NULL;
    stream->last = &stream->first;
    return OK;
}
int cuStreamEndCapture(Stream *stream, Graph **graph) {
    stream->capturing = 0;
    *graph = malloc(sizeof **graph);
    (*graph)->number = graphs++;
    (*graph)->first = stream->first;
    int count = 0;
    for (Op *op = stream->first; op; op = op->next) count++;
    say("s%d end capture of g%d with %d", stream->number, (*graph)->number, count);
    return OK;
}
int cuGraphInstantiateWithFlags(Graph **runnable, Graph *graph, unsigned long long flags) {
    *runnable = malloc(sizeof **runnable);
    **runnable = *graph;
    return OK;
}
int cuGraphLaunch(Graph *graph, Stream *stream) {
    say("s%d replay g%d", stream->number, graph->number);
    for (Op *op = graph->first; op; op = op->next) run(op, stream->number);
    return OK;
}
int cuGraphDestroy(Graph *graph) { free(graph); return OK; }
int cuGraphExecDestroy(Graph *graph) { say("destroy g%d", graph->number); free(graph); return OK; }
int cuEventCreate(int **event, unsigned flags) {
    *event = malloc(sizeof **event);
    **event = events++;
    return flags == 2 || flags == 0 ? OK : INVALID;
}
int cuEventDestroy_v2(int *event) { free(event); return OK; }
int cuEventRecord(int *event, Stream *stream) { say("s%d records e%d", stream->number, *event); return OK; }
int cuEventElapsedTime(float *milliseconds, int *from, int *to) {
    *milliseconds = 1;
    return from != to ? OK : INVALID;
}
int cuEventSynchronize(int *event) { say("wait for e%d", *event); return OK; }

int cuMemcpyHtoDAsync_v2(Ptr to, const void *from, size_t bytes, Stream *stream) {
    say("s%d write %s, %zu", stream->number, shown(to), bytes);
    memcpy((void *)(uintptr_t)to, from, bytes);
    return current ? OK : INVALID;
}
int cuMemcpyDtoHAsync_v2(void *to, Ptr from, size_t bytes, Stream *stream) {
    say("s%d read %s, %zu", stream->number, shown(from), bytes);
    memcpy(to, (void *)(uintptr_t)from, bytes);
    return current ? OK : INVALID;
}
int cuMemcpyDtoDAsync_v2(Ptr to, Ptr from, size_t bytes, Stream *stream) {
    return submit(stream, (Op){.kind = 1, .to = to, .from = from, .bytes = bytes});
}
int cuMemsetD8Async(Ptr to, unsigned char byte, size_t bytes, Stream *stream) {
    return submit(stream, (Op){.kind = 2, .to = to, .byte = byte, .bytes = bytes});
}

// Modules: the sizes of a kernel's parameters are read from the PTX.

typedef struct { char name[128]; int count, sizes[32]; } Function;

int cuModuleLoadDataEx(char **module, const char *text, unsigned count, int *options, void **values) {
    if (strstr(text, "bogus")) {
        for (unsigned i = 0; i < count; i++)
            if (options[i] == 5) strcpy(values[i], "ptxas fatal\n  line 7: unknown instruction\n");
        return INVALID_PTX;
    }
    say("load %zu characters", strlen(text));
    *module = strdup(text);
    return OK;
}
int cuModuleUnload(char *module) { free(module); return OK; }
int cuModuleGetFunction(Function **function, char *module, const char *name) {
    char wanted[160];
    snprintf(wanted, sizeof wanted, ".entry %s(", name);
    const char *at = strstr(module, wanted);
    if (!at) return NOT_FOUND;
    Function *f = *function = calloc(1, sizeof *f);
    snprintf(f->name, sizeof f->name, "%s", name);
    const char *end = strchr(at + strlen(wanted), ')');
    for (const char *p = at; (p = strstr(p, ".param ")) && p < end; p++) {
        const char *line = strpbrk(p, ",\n");
        const char *array = memchr(p, '[', line - p);
        const char *wide = strstr(p, "64 ");
        f->sizes[f->count++] = array ? atoi(array + 1) : wide && wide < line ? 8 : 4;
    }
    say("function %s of %d parameters", name, f->count);
    return OK;
}
int cuFuncLoad(Function *function) { return current ? OK : INVALID; }
int cuFuncGetAttribute(int *value, int which, Function *function) {
    *value = which == 4 ? 40 : which == 3 ? 16 : which == 1 ? 1024 : 256;
    return OK;
}
int cuFuncSetAttribute(Function *function, int which, int value) {
    if (value > 166912) return INVALID;
    say("%s may use %d bytes of shared memory", function->name, value);
    return which == 8 ? OK : INVALID;
}
int cuLaunchKernel(Function *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   Stream *stream, void **args, void **extra) {
    if (bx * by * bz > 1024) return INVALID;
    Op op = {.kind = 0};
    int n = snprintf(op.text, sizeof op.text, "%s grid %u %u %u block %u %u %u shared %u args", f->name, x, y, z, bx, by,
                     bz, shared);
    for (int i = 0; i < f->count; i++) {
        Ptr value = 0;
        memcpy(&value, args[i], f->sizes[i] < 8 ? f->sizes[i] : 8);
        n += snprintf(op.text + n, sizeof op.text - n, " %s", shown(value));
    }
    return submit(stream, op);
}
#ifndef NO_TENSOR_MAP
int cuTensorMapEncodeTiled(uint64_t *map, int type, uint32_t rank, void *base, const uint64_t *dims,
                           const uint64_t *strides, const uint32_t *box, const uint32_t *steps, int interleave,
                           int swizzle, int promotion, int fill) {
    map[0] = (uint64_t)(uintptr_t)base;
    map[1] = rank;
    say("map of %s: type %d rank %u dims %llu %llu stride %llu box %u %u steps %u %u swizzle %d", shown(map[0]), type, rank,
        (unsigned long long)dims[0], (unsigned long long)dims[1], (unsigned long long)strides[0], box[0], box[1], steps[0],
        steps[1], swizzle);
    return (uintptr_t)map % 64 ? INVALID : OK;
}
#endif
