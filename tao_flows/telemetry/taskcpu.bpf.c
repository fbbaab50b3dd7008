/* SPDX-License-Identifier: Apache-2.0 OR GPL-2.0-only */
/*
 * CPU time by party, counted where the scheduler changes threads. Loaded by ebpf.py, which describes the whole;
 * built by build_taskcpu.sh into taskcpu.bpf.o, which fits every kernel with BTF (5.11 and later).
 *
 * What is charged is what the kernel itself counted for each thread (sum_exec_runtime), so that it is what the thread's
 * control group is charged, without time that a hypervisor took away. How much of it has been charged is kept by
 * thread: some kernels do not tell of every switch, and what one event misses the thread's next one brings.
 *
 * Each CPU has a record of whose thread runs there and since when, for readers to add the slice in progress.
 *
 * A thread's owner is a party and that party's era, in one number. A party that is removed goes on to its next era,
 * so that every owner left behind by it counts for nobody from that moment, and its number can be used at once.
 */

typedef signed char __s8;
typedef unsigned char __u8;
typedef short __s16;
typedef unsigned short __u16;
typedef int __s32;
typedef unsigned int __u32;
typedef long long __s64;
typedef unsigned long long __u64;
typedef __u16 __be16;
typedef __u32 __be32;
typedef __u64 __be64;
typedef __u32 __wsum;

#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

/* From the kernel's include/uapi/linux/bpf.h; they are part of its interface and never change. */
#define BPF_MAP_TYPE_HASH 1
#define BPF_MAP_TYPE_ARRAY 2
#define BPF_F_MMAPABLE (1U << 10)
#define BPF_ANY 0

#define NOBODY 0ULL
#define IDLE 1ULL /* Eras begin at 1, so that no party's id is this small. */

/* All that is needed of them. The loader finds each field's place in the kernel that runs. */
struct sched_entity {
	__u64 sum_exec_runtime; /* Nanoseconds, brought up to date before every switch and at every tick. */
} __attribute__((preserve_access_index));

struct task_struct {
	int pid; /* What user space calls the thread's number, in the first PID namespace. */
	struct sched_entity se;
} __attribute__((preserve_access_index));

struct linux_binprm;

struct owner {
	__u64 id;   /* Era in the upper half, party in the lower. */
	__u64 task; /* Which thread of this number is meant, for numbers are used again; 0 until it is seen. */
	__u64 charged_ns; /* Of its sum_exec_runtime. */
};

struct sum {
	__u64 cpu_ns;
	__u32 era;
	__u32 leaves_on_exec;
};

struct cpu {
	__u64 since_ns; /* 0 while this is being changed, and before the first time. */
	__u64 id;
	__u64 busy_ns; /* Slices that have ended, of every thread but the idle one. */
	__u32 tid;
	__u32 lost; /* Threads that found no room in the table. */
	__u64 begun_at_ns; /* What the kernel had counted for the thread when this began. */
	__u64 to_its_own_cache_line[3];
};

/* The loader gives every map its size. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct owner);
} owners SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct sum);
} sums SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct cpu);
} cpus SEC(".maps");

static __always_inline struct cpu *this_cpu(void)
{
	__u32 number = bpf_get_smp_processor_id();

	return bpf_map_lookup_elem(&cpus, &number);
}

/* The party's sum while it is in the era that the id names. */
static __always_inline struct sum *sum_of(__u64 id)
{
	__u32 party = id;
	struct sum *sum = bpf_map_lookup_elem(&sums, &party);

	return sum && sum->era == id >> 32 ? sum : 0;
}

/* Charges the thread's party with what the thread has run since last time, and gives the party's id. */
static __always_inline __u64 charge(struct cpu *cpu, __u32 tid, struct task_struct *task)
{
	__u64 ran_ns = task->se.sum_exec_runtime, new_ns;
	struct owner *owner;
	struct sum *sum;

	if (!tid)
		return IDLE;
	owner = bpf_map_lookup_elem(&owners, &tid);
	if (!owner)
		return NOBODY;
	if (!owner->task) {
		owner->task = (__u64)task;
		owner->charged_ns = ran_ns;
	}
	if (owner->task != (__u64)task)
		return NOBODY;
	sum = sum_of(owner->id);
	if (!sum)
		return NOBODY;
	if (ran_ns > owner->charged_ns) {
		new_ns = ran_ns - owner->charged_ns;
		owner->charged_ns = ran_ns;
		/* Before the party's sum, so that a reader never finds the parties busier than the host. */
		cpu->busy_ns += new_ns;
		barrier();
		__sync_fetch_and_add(&sum->cpu_ns, new_ns);
	}
	return owner->id;
}

/* The thread that was number `tid` leaves this CPU, or is about to go on there. Gives the id of its party. */
static __always_inline __u64 leave(struct cpu *cpu, __u32 tid, struct task_struct *task)
{
	volatile __u64 *since = &cpu->since_ns;
	int seen = *since && cpu->tid == tid;
	__u64 ran_ns = task->se.sum_exec_runtime, id;

	*since = 0;
	id = seen && cpu->id <= IDLE ? cpu->id : charge(cpu, tid, task);
	if (seen && cpu->id != IDLE && id == NOBODY && ran_ns > cpu->begun_at_ns)
		cpu->busy_ns += ran_ns - cpu->begun_at_ns;
	return id;
}

/* From now on this CPU runs that thread for that party. */
static __always_inline void enter(struct cpu *cpu, __u32 tid, struct task_struct *task, __u64 id)
{
	volatile __u64 *since = &cpu->since_ns;

	cpu->tid = tid;
	cpu->id = id;
	cpu->begun_at_ns = task->se.sum_exec_runtime;
	*since = bpf_ktime_get_ns();
}

SEC("tp_btf/sched_switch")
int BPF_PROG(on_switch, _Bool preempt, struct task_struct *prev, struct task_struct *next)
{
	struct cpu *cpu = this_cpu();

	if (!cpu)
		return 0;
	leave(cpu, prev->pid, prev);
	enter(cpu, next->pid, next, charge(cpu, next->pid, next));
	return 0;
}

/* Not sched_process_fork, which says nothing of the threads that io_uring starts for a program. */
SEC("tp_btf/task_newtask")
int BPF_PROG(on_newtask, struct task_struct *child)
{
	__u32 parent = bpf_get_current_pid_tgid(), tid = child->pid;
	struct owner *owner = bpf_map_lookup_elem(&owners, &parent);
	struct owner inherited = {.task = (__u64)child, .charged_ns = child->se.sum_exec_runtime};
	struct cpu *cpu;

	if (!owner || (owner->task && owner->task != bpf_get_current_task()) || !sum_of(owner->id))
		return 0;
	inherited.id = owner->id;
	cpu = this_cpu();
	if (bpf_map_update_elem(&owners, &tid, &inherited, BPF_ANY) && cpu)
		__sync_fetch_and_add(&cpu->lost, 1);
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *task, int old_tid, struct linux_binprm *program)
{
	__u32 tid = task->pid, old = old_tid;
	struct owner owner = {.task = (__u64)task, .charged_ns = task->se.sum_exec_runtime};
	struct cpu *cpu = this_cpu();
	struct sum *sum;

	if (!cpu)
		return 0;
	owner.id = leave(cpu, old, task);
	sum = owner.id == NOBODY ? 0 : sum_of(owner.id);
	if (!sum || sum->leaves_on_exec) {
		owner.id = NOBODY;
		bpf_map_delete_elem(&owners, &tid);
	}
	/* A thread that is not its process's first takes over the first one's number. */
	if (old != tid) {
		bpf_map_delete_elem(&owners, &old);
		if (owner.id != NOBODY && bpf_map_update_elem(&owners, &tid, &owner, BPF_ANY))
			__sync_fetch_and_add(&cpu->lost, 1);
	}
	enter(cpu, tid, task, owner.id);
	return 0;
}

/* Not sched_process_exit: a thread that has called exit still runs. */
SEC("tp_btf/sched_process_free")
int BPF_PROG(on_free, struct task_struct *task)
{
	__u32 tid = task->pid;
	struct owner *owner = bpf_map_lookup_elem(&owners, &tid);
	struct cpu *cpu = this_cpu();

	/* By now its number may be another thread's. */
	if (!owner || (owner->task && owner->task != (__u64)task))
		return 0;
	if (cpu)
		charge(cpu, tid, task);
	bpf_map_delete_elem(&owners, &tid);
	return 0;
}

/* Run by the loader on a CPU of its choice: looks again whose the thread is that runs there. */
SEC("raw_tp")
int look_again(void *context)
{
	struct task_struct *task = (void *)bpf_get_current_task_btf();
	struct cpu *cpu = this_cpu();

	if (!cpu)
		return 0;
	leave(cpu, task->pid, task);
	enter(cpu, task->pid, task, charge(cpu, task->pid, task));
	return 0;
}

/* The kernel lets only programs under a licence like its own look into a task_struct. */
char LICENSE[] SEC("license") = "GPL";
