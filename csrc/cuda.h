// The verbs of a correction on a CUDA device. Every pointer of a call is a device pointer.
//
// Calls only enqueue kernels on the stream given: nothing waits, allocates or copies, so a call can
// be captured in a CUDA graph (after one call outside of it, which loads the kernels).
#pragma once

#include <cstdint>
#include <string>

#include "step.h"

namespace ragrad::cuda {

// Why kernels cannot run on this device; empty if they can. Never throws, and needs no driver.
std::string unusable(int device);

// Bytes of device memory that the calls on a table need. The caller zeroes them once for every
// table version, and keeps them: every call leaves them ready for the next one on the same stream.
int64_t workspace_bytes(const Table& table);

// These throw std::runtime_error with CUDA's own message. `apply` has no use for the workspace.
void observe(const Table& table, const Observation& out, void* workspace, void* stream);
void apply(const Table& table, const Mixing& in, void* workspace, void* stream);
void decide_and_apply(const Table& table, const Correction& out, void* workspace, void* stream);

}  // namespace ragrad::cuda
