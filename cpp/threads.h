// The only thread pool. Nothing inline: the header is shared by objects compiled for different ISAs.
#pragma once

namespace rheme {

typedef void (*TaskFunction)(void* context, long index);

// Calls fn(context, 0 .. tasks-1), each once, on up to num_threads() threads (the caller is one of them), and returns when all
// are done. Which thread takes which index is not fixed, so a task must own its outputs. If the pool is busy with another
// Python thread's call, or this is a nested call, the caller runs all tasks itself. What a task throws (std::bad_alloc) the
// caller gets, when all threads have left; tasks that were not begun by then are not.
void parallel_for(long tasks, TaskFunction fn, void* context);

// Leaves the core to others for some 50 us: for a thread that has waited for another longer than that one's work takes. Rests
// that follow upon each other for 2 ms make num_threads() 1 for a while.
void rest();

// How an LSTM is shared out among threads: 0 by the cost of either way, 1 rows, 2 hidden units. For measurements only, by
// RHEME_LSTM_PLAN=rows or units; the results have the same bits.
int lstm_plan();

int num_threads();            // that work is to be shared out among just now: those chosen, or one beside a busy neighbour
int chosen_threads();         // by set_num_threads, RHEME_NUM_THREADS or the machine
void set_num_threads(int n);  // n >= 1
int forced_threads();         // RHEME_NUM_THREADS, 0 where it is not set; throws std::runtime_error for what is no such number

}  // namespace rheme
