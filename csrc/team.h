// Several threads for the length of one call.
#pragma once

namespace ragrad::cpu {

// Calls work(data) on up to `threads` threads at once, this one among them, and returns when all
// have returned. How many there are in the end is not promised.
void on_threads(int threads, void (*work)(void*), void* data);

}  // namespace ragrad::cpu
