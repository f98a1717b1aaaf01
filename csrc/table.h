// The row table: where the rows (l, i) of all paired layers lie in memory.
//
// A row is one output channel of one layer. It is walked in the memory order of the rgb gradient,
// the same for every operand of the layer, whatever their strides.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dlpack.h"

namespace ragrad {

enum class Type : uint8_t { f32, bf16, f16, f64 };

inline int64_t bytes_of(Type type) { return type == Type::f32 ? 4 : type == Type::f64 ? 8 : 2; }

// What a layer consists of; rgb is even, ir is odd: `kWeight + m` is the weight of modality m.
enum Operand : int { kGradient = 0, kWeight = 2, kMean = 4, kOperands = 6 };

constexpr int kMaxDims = 6;  // of a row, after neighbouring dimensions are merged

struct Layer {
  int index;          // l, among all pairs, skipped ones included
  int64_t first_row;  // its first flat row
  int64_t channels;   // C_l
  int64_t row_size;   // N_l
  bool dense;         // every row of every operand is one run of consecutive elements
  int ndim;           // dimensions of a row; 1 if dense
  int64_t size[kMaxDims];
  void* data[kOperands];  // null: this operand is not read
  Type type[kOperands];
  int64_t channel_stride[kOperands];  // in elements
  int64_t stride[kOperands][kMaxDims];
};

// One side of one kind of operand: a tensor per pair, or none where it is not read.
using Tensors = std::vector<std::optional<dlpack::Tensor>>;

class Table {
 public:
  // channels: C_l of every pair; axes: its output channel axis.
  Table(std::vector<int64_t> channels, std::vector<int64_t> axes);

  // Whether these gradients have the geometry that was set last; if so, their pointers are taken.
  bool take(const Tensors& rgb, const Tensors& ir);

  // Take gradients of a new geometry. Their shapes, types and devices were checked by the caller.
  // Throws std::invalid_argument for what the kernels cannot walk.
  void set(const Tensors& rgb, const Tensors& ir);

  // Take the weights and the history that go with the gradients: operand kWeight or kMean.
  // Throws std::invalid_argument where they do not fit the gradients.
  void attach(Operand operand, const Tensors& rgb, const Tensors& ir);

  const std::vector<int64_t>& channels() const { return channels_; }
  const std::vector<int64_t>& axes() const { return axes_; }
  const std::vector<Layer>& layers() const { return layers_; }  // the pairs that are present
  int64_t rows() const { return rows_; }                        // of all pairs
  int64_t version() const { return version_; }  // grows with every change of geometry
  dlpack::Device device() const { return device_; }

 private:
  struct Geometry {  // all that must not change while pointers move
    bool present = false;
    Type type{};
    dlpack::Device device{};
    std::vector<int64_t> shape, strides;
    bool matches(const std::optional<dlpack::Tensor>& tensor) const;
  };

  bool matches(Operand operand, const Tensors& rgb, const Tensors& ir) const;
  void remember(Operand operand, const Tensors& rgb, const Tensors& ir);
  void point(Operand operand, const Tensors& rgb, const Tensors& ir);
  struct Dim {  // of a row
    int64_t size;
    int64_t stride[kOperands];  // in elements; 0 for an operand that is not read
  };

  void rebuild();
  std::vector<Dim> dims_of_row(Layer& layer) const;
  static std::vector<Dim> merged(const std::vector<Dim>& dims);
  void set_walk(Layer& layer, const std::vector<Dim>& dims) const;

  std::vector<int64_t> channels_, axes_;
  int64_t rows_ = 0, version_ = 0;
  bool valid_ = false;  // layers_ belongs to geometry_
  dlpack::Device device_{dlpack::kCPU, 0};
  std::vector<Geometry> geometry_[kOperands];
  std::vector<Layer> layers_;
};

// The element type of a tensor; nothing for one that the kernels do not read.
std::optional<Type> type_of(dlpack::DataType dtype);

}  // namespace ragrad
