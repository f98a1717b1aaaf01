#include "table.h"

#include <algorithm>
#include <numeric>
#include <stdexcept>

namespace ragrad {

namespace {

const char* const kNames[kOperands] = {"grads_rgb",  "grads_ir", "weights_rgb",
                                       "weights_ir", "mean_rgb", "mean_ir"};

[[noreturn]] void refuse(int operand, size_t l, const std::string& why) {
  throw std::invalid_argument(std::string(kNames[operand]) + "[" + std::to_string(l) + "] " + why);
}

void* address(const dlpack::Tensor& tensor) {
  return static_cast<char*>(tensor.data) + tensor.byte_offset;
}

int64_t numel(const dlpack::Tensor& tensor) {
  return std::accumulate(tensor.shape, tensor.shape + tensor.ndim, int64_t{1},
                         std::multiplies<int64_t>());
}

}  // namespace

std::optional<Type> type_of(dlpack::DataType dtype) {
  if (dtype.lanes != 1) return {};
  if (dtype.code == dlpack::kBfloat && dtype.bits == 16) return Type::bf16;
  if (dtype.code != dlpack::kFloat) return {};
  switch (dtype.bits) {
    case 16: return Type::f16;
    case 32: return Type::f32;
    case 64: return Type::f64;
    default: return {};
  }
}

Table::Table(std::vector<int64_t> channels, std::vector<int64_t> axes)
    : channels_(std::move(channels)), axes_(std::move(axes)) {
  rows_ = std::accumulate(channels_.begin(), channels_.end(), int64_t{0});
  for (auto& side : geometry_) side.resize(channels_.size());
}

bool Table::Geometry::matches(const std::optional<dlpack::Tensor>& tensor) const {
  if (!tensor || !present) return !tensor && !present;
  const auto& t = *tensor;
  return size_t(t.ndim) == shape.size() && t.device == device && type_of(t.dtype) == type &&
         std::equal(shape.begin(), shape.end(), t.shape) &&
         std::equal(strides.begin(), strides.end(), t.strides);
}

bool Table::matches(Operand operand, const Tensors& rgb, const Tensors& ir) const {
  if (rgb.size() != channels_.size() || ir.size() != channels_.size()) return false;
  for (size_t l = 0; l < channels_.size(); ++l) {
    if (!geometry_[operand][l].matches(rgb[l]) || !geometry_[operand + 1][l].matches(ir[l])) {
      return false;
    }
  }
  return true;
}

bool Table::take(const Tensors& rgb, const Tensors& ir) {
  if (!valid_ || !matches(kGradient, rgb, ir)) return false;
  for (const Layer& layer : layers_) {
    const auto& a = rgb[layer.index];
    const auto& b = ir[layer.index];
    // One memory on both sides, or none at all: the caller's checks say what is wrong with it.
    if (address(*a) == address(*b) || !a->data || !b->data) return false;
  }
  point(kGradient, rgb, ir);
  return true;
}

void Table::set(const Tensors& rgb, const Tensors& ir) {
  remember(kGradient, rgb, ir);
  for (int operand = kWeight; operand < kOperands; ++operand) {
    std::fill(geometry_[operand].begin(), geometry_[operand].end(), Geometry{});
  }
  layers_.clear();
  rebuild();
  point(kGradient, rgb, ir);
}

void Table::attach(Operand operand, const Tensors& rgb, const Tensors& ir) {
  if (!valid_ || !matches(operand, rgb, ir)) {
    remember(operand, rgb, ir);
    rebuild();
  }
  point(operand, rgb, ir);
}

void Table::remember(Operand operand, const Tensors& rgb, const Tensors& ir) {
  const Tensors* sides[2] = {&rgb, &ir};
  std::vector<Geometry> seen[2];
  for (int m = 0; m < 2; ++m) {
    if (sides[m]->size() != channels_.size()) {
      throw std::invalid_argument(std::string(kNames[operand + m]) + " has " +
                                  std::to_string(sides[m]->size()) + " entries for " +
                                  std::to_string(channels_.size()) + " pairs");
    }
    for (size_t l = 0; l < channels_.size(); ++l) {
      Geometry geometry;
      if (const auto& t = (*sides[m])[l]) {
        const auto type = type_of(t->dtype);
        if (!type) refuse(operand + m, l, "has a dtype that the native backend does not read");
        if (numel(*t) > 0 && !t->data) {
          refuse(operand + m, l, "has no memory of its own; pass a plain local tensor");
        }
        geometry = {true,
                    *type,
                    t->device,
                    {t->shape, t->shape + t->ndim},
                    {t->strides, t->strides + t->ndim}};
        const Geometry& gradient = geometry_[kGradient][l];
        if (operand != kGradient && gradient.present &&
            !(geometry.shape == gradient.shape && geometry.device == gradient.device)) {
          refuse(operand + m, l, "has another shape or device than the gradient of that pair");
        }
      }
      seen[m].push_back(std::move(geometry));
    }
  }
  for (size_t l = 0; l < channels_.size(); ++l) {
    if (seen[0][l].present && seen[1][l].present && seen[0][l].type != seen[1][l].type) {
      refuse(operand, l, "and its twin have different dtypes");
    }
  }
  for (int m = 0; m < 2; ++m) geometry_[operand + m] = std::move(seen[m]);
}

void Table::point(Operand operand, const Tensors& rgb, const Tensors& ir) {
  for (Layer& layer : layers_) {
    const Tensors* sides[2] = {&rgb, &ir};
    for (int m = 0; m < 2; ++m) {
      const auto& tensor = (*sides[m])[layer.index];
      layer.data[operand + m] = tensor ? address(*tensor) : nullptr;
    }
  }
}

void Table::rebuild() {
  valid_ = false;
  std::vector<Layer> layers;
  std::vector<const Layer*> before(channels_.size());  // whose pointers stay
  for (const Layer& layer : layers_) before[size_t(layer.index)] = &layer;
  int64_t first_row = 0;
  for (size_t l = 0; l < channels_.size(); first_row += channels_[l++]) {
    if (!geometry_[kGradient][l].present || !geometry_[kGradient + 1][l].present) continue;
    Layer layer{};
    if (before[l]) std::copy(before[l]->data, before[l]->data + kOperands, layer.data);
    layer.index = int(l);
    layer.first_row = first_row;
    layer.channels = channels_[l];
    const std::vector<Dim> dims = merged(dims_of_row(layer));
    if (layer.channels * layer.row_size == 0) continue;
    if (dims.size() > kMaxDims) {
      refuse(kGradient, l, "has more separate dimensions than the native backend walks");
    }
    set_walk(layer, dims);
    layers.push_back(layer);
  }
  layers_ = std::move(layers);
  if (!layers_.empty()) device_ = geometry_[kGradient][layers_.front().index].device;
  ++version_;
  valid_ = true;
}

// The dimensions of a row, in the memory order of the rgb gradient, outermost first. Also the types
// of the layer, its strides from channel to channel, and the size of a row.
std::vector<Table::Dim> Table::dims_of_row(Layer& layer) const {
  const auto l = size_t(layer.index);
  const Geometry& lead = geometry_[kGradient][l];
  std::vector<Dim> dims;
  layer.row_size = 1;
  for (size_t d = 0; d < lead.shape.size(); ++d) {
    Dim dim{lead.shape[d], {}};
    for (int o = 0; o < kOperands; ++o) {
      const Geometry& geometry = geometry_[o][l];
      if (!geometry.present) continue;
      layer.type[o] = geometry.type;
      dim.stride[o] = geometry.strides[d];
      if (int64_t(d) == axes_[l]) layer.channel_stride[o] = geometry.strides[d];
    }
    if (int64_t(d) == axes_[l]) continue;
    layer.row_size *= dim.size;
    if (dim.size > 1) dims.push_back(dim);
  }
  std::stable_sort(dims.begin(), dims.end(), [](const Dim& a, const Dim& b) {
    return a.stride[kGradient] > b.stride[kGradient];
  });
  return dims;
}

// Neighbours that every operand walks as one become one. Operands that are not read have strides of
// 0, which fit anything; a row of one element has one dimension.
std::vector<Table::Dim> Table::merged(const std::vector<Dim>& dims) {
  std::vector<Dim> out;
  for (const Dim& dim : dims) {
    const bool follows = !out.empty() && [&] {
      for (int o = 0; o < kOperands; ++o) {
        if (out.back().stride[o] != dim.stride[o] * dim.size) return false;
      }
      return true;
    }();
    if (follows) {
      const int64_t size = out.back().size * dim.size;
      out.back() = dim;
      out.back().size = size;
    } else {
      out.push_back(dim);
    }
  }
  if (out.empty()) {
    Dim single{1, {}};
    std::fill(single.stride, single.stride + kOperands, 1);
    out.push_back(single);
  }
  return out;
}

// How a row is walked, and whether that is one run for every operand that is read.
void Table::set_walk(Layer& layer, const std::vector<Dim>& dims) const {
  layer.ndim = int(dims.size());
  layer.dense = layer.ndim == 1;
  for (int d = 0; d < layer.ndim; ++d) {
    layer.size[d] = dims[size_t(d)].size;
    for (int o = 0; o < kOperands; ++o) {
      layer.stride[o][d] = dims[size_t(d)].stride[o];
      const bool read = geometry_[o][size_t(layer.index)].present;
      if (read && layer.stride[o][d] != 1) layer.dense = false;
    }
  }
}

}  // namespace ragrad
