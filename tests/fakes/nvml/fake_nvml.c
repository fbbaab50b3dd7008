/* A libnvidia-ml.so.1 whose GPUs are lines in the file named by FAKE_NVML_STATE, read afresh at every call:
 *
 *     count 2
 *     energy0 1000        millijoules of GPU 0; a value such as !15 is returned as that NVML error
 *     power1 250000       milliwatts of GPU 1; a line that is missing is NVML_ERROR_NOT_SUPPORTED
 *     pids0 41,42         processes that compute on GPU 0
 *     util0 41:60,42:5    their samples: process:smUtil[:decUtil[:microseconds since the epoch]], where a time that is
 *                         missing is now; "none" is NVML_ERROR_NOT_FOUND
 *
 * Compiled with WITHOUT_ENERGY, WITHOUT_PROCESSES_V3 or WITHOUT_OPTIONAL it lacks those functions, as older
 * libraries do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>

enum { SUCCESS = 0, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7 };

typedef struct {
    unsigned pid;
    unsigned long long used_memory;
    unsigned gpu_instance, compute_instance;
} process_info;

typedef struct {
    unsigned pid;
    unsigned long long time_us;
    unsigned sm, memory, encoder, decoder;
} utilisation;

static int text_of(const char *name, long index, char *value, size_t size) {
    char key[64], line_key[64], line_value[256];
    if (index < 0)
        snprintf(key, sizeof key, "%s", name);
    else
        snprintf(key, sizeof key, "%s%ld", name, index);
    FILE *state = fopen(getenv("FAKE_NVML_STATE"), "r");
    int found = 0;
    while (state && !found && fscanf(state, "%63s %255s", line_key, line_value) == 2)
        found = strcmp(line_key, key) == 0;
    if (state)
        fclose(state);
    if (found)
        snprintf(value, size, "%s", line_value);
    return found;
}

static int number_of(const char *name, long index, unsigned long long *value) {
    char text[256];
    if (!text_of(name, index, text, sizeof text))
        return NOT_SUPPORTED;
    if (text[0] == '!')
        return atoi(text + 1);
    *value = strtoull(text, NULL, 10);
    return SUCCESS;
}

static long index_of(void *device) { return (long)device - 1; }

int nvmlInitWithFlags(unsigned flags) {
    unsigned long long ignored;
    int code = number_of("init", -1, &ignored);
    (void)flags;
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

int nvmlShutdown(void) {
    FILE *log = fopen(getenv("FAKE_NVML_STATE"), "a");
    if (log) {
        fprintf(log, "shutdown 1\n");
        fclose(log);
    }
    return SUCCESS;
}

const char *nvmlErrorString(int code) { return code == SUCCESS ? "Success" : "Error of the fake"; }

int nvmlDeviceGetCount_v2(unsigned *count) {
    unsigned long long value = 0;
    int code = number_of("count", -1, &value);
    *count = (unsigned)value;
    return code;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    unsigned long long ignored;
    int code = number_of("handle", index, &ignored);
    *device = (void *)((long)index + 1);
    return code == NOT_SUPPORTED ? SUCCESS : code;
}

#ifndef WITHOUT_ENERGY
int nvmlDeviceGetTotalEnergyConsumption(void *device, unsigned long long *millijoules) {
    return number_of("energy", index_of(device), millijoules);
}
#endif

int nvmlDeviceGetPowerUsage(void *device, unsigned *milliwatts) {
    unsigned long long value = 0;
    int code = number_of("power", index_of(device), &value);
    *milliwatts = (unsigned)value;
    return code;
}

#ifndef WITHOUT_OPTIONAL
int nvmlDeviceGetUUID(void *device, char *uuid, unsigned length) {
    snprintf(uuid, length, "GPU-fake-%ld", index_of(device));
    return SUCCESS;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) {
    unsigned long long value = 0;
    int code = number_of("mig", index_of(device), &value);
    *current = *pending = (unsigned)value;
    return code;
}

static int processes(void *device, unsigned *count, process_info *infos) {
    char text[256];
    unsigned found = 0;
    if (!text_of("pids", index_of(device), text, sizeof text))
        return *count = 0, SUCCESS;
    if (text[0] == '!')
        return atoi(text + 1);
    for (char *pid = strtok(text, ","); pid; pid = strtok(NULL, ",")) {
        if (infos && found < *count)
            infos[found] = (process_info){.pid = (unsigned)atoi(pid)};
        found++;
    }
    int fits = infos && found <= *count;
    *count = found;
    return fits ? SUCCESS : INSUFFICIENT_SIZE;
}

#ifndef WITHOUT_PROCESSES_V3
int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *count, process_info *infos) {
    return processes(device, count, infos);
}
#endif

int nvmlDeviceGetComputeRunningProcesses_v2(void *device, unsigned *count, process_info *infos) {
    return processes(device, count, infos);
}

int nvmlDeviceGetProcessUtilization(void *device, utilisation *samples, unsigned *count, unsigned long long seen_us) {
    char text[256];
    unsigned found = 0;
    struct timeval now;
    gettimeofday(&now, NULL);
    if (!text_of("util", index_of(device), text, sizeof text))
        return NOT_SUPPORTED;
    if (text[0] == '!')
        return *count = 0, atoi(text + 1);
    for (char *each = strtok(text, ","); each; each = strtok(NULL, ",")) {
        utilisation one = {.time_us = now.tv_sec * 1000000ULL + now.tv_usec};
        int fields = sscanf(each, "%u:%u:%u:%llu", &one.pid, &one.sm, &one.decoder, &one.time_us);
        if (fields < 2 || one.time_us <= seen_us)
            continue;
        if (samples && found < *count)
            samples[found] = one;
        found++;
    }
    int fits = samples && found <= *count;
    *count = found;
    return !found ? NOT_FOUND : fits ? SUCCESS : INSUFFICIENT_SIZE;
}
#endif
