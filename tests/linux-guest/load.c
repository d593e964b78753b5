/* What the tests' Linux guest does: `tick` prints a number every 5 ms; `memory MIB` fills memory with a pattern, checks it
 * over and over and changes a part of it each time; `write MIB RATE` writes to memory at RATE MiB a second. */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#define WORDS 512

static void rest(long microseconds)
{
    struct timespec time = { microseconds / 1000000, microseconds % 1000000 * 1000 };
    nanosleep(&time, NULL);
}

static double now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static uint64_t pattern(uint64_t page, uint64_t age, uint64_t word)
{
    uint64_t x = (page << 32 | age << 12 | word) + 0x9e3779b97f4a7c15u;
    x ^= x >> 31;
    x *= 0xbf58476d1ce4e5b9u;
    return x ^ x >> 29;
}

static void *memory(size_t mib)
{
    void *at = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED) {
        printf("MEMORY none BAD\n");
        exit(1);
    }
    return at;
}

static void fill(uint64_t *at, uint64_t page, uint64_t age)
{
    for (int word = 0; word < WORDS; word++)
        at[page * WORDS + word] = pattern(page, age, word);
}

static void check_memory(size_t mib)
{
    size_t pages = mib << 8;
    uint64_t *at = memory(mib), *ages = calloc(pages, sizeof *ages);
    for (size_t page = 0; page < pages; page++)
        fill(at, page, 0);
    for (long pass = 1;; pass++) {
        long wrong = 0;
        for (size_t page = 0; page < pages; page++) {
            for (int word = 0; word < WORDS; word++)
                wrong += at[page * WORDS + word] != pattern(page, ages[page], word);
            if (page % 16 == (size_t)pass % 16)
                fill(at, page, ++ages[page]);
        }
        printf("MEMORY %ld %s\n", pass, wrong ? "BAD" : "good");
        rest(20000);
    }
}

static void write_memory(size_t mib, double rate)
{
    uint64_t *at = memory(mib), value = 0;
    double start = now();
    for (double done = 0;;) {
        for (size_t page = 0; page < mib << 8; page++)
            at[page * WORDS] = ++value;
        done += mib;
        double ahead = done / rate - (now() - start);
        if (ahead > 0)
            rest(ahead * 1e6);
    }
}

int main(int count, char **arguments)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count > 1 && !strcmp(arguments[1], "tick"))
        for (long n = 0;; n++, rest(5000))
            printf("TICK %ld %.4f\n", n, now());
    if (count > 2 && !strcmp(arguments[1], "memory"))
        check_memory(atoi(arguments[2]));
    if (count > 3 && !strcmp(arguments[1], "write"))
        write_memory(atoi(arguments[2]), atof(arguments[3]));
    return 1;
}
