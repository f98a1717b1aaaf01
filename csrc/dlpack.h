// The part of the DLPack C ABI (version 1) that is read here: where a tensor is, and how.
//
// Every torch.Tensor type offers it as `__dlpack_c_exchange_api__`, a table of C functions. This is
// how the module sees tensors without a single torch header, in about 40 ns each.
// Layouts as specified by DLPack, https://github.com/dmlc/dlpack.
#pragma once

#include <cstdint>

namespace ragrad::dlpack {

enum DeviceType : int32_t { kCPU = 1, kCUDA = 2 };
enum TypeCode : uint8_t { kFloat = 2, kBfloat = 4, kBool = 6 };

struct Device {
  int32_t type;
  int32_t id;
  bool operator==(const Device& other) const { return type == other.type && id == other.id; }
};

struct DataType {
  uint8_t code;
  uint8_t bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements
  uint64_t byte_offset;
};

struct ExchangeApi {
  struct {
    uint32_t major, minor;
  } version;
  void* previous;
  // The functions that are called have types; the others only keep their place.
  void* allocate;
  void* managed_from_object;
  void* managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

}  // namespace ragrad::dlpack
