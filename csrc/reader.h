// Torch tensors as the table and the verbs take them, read without a torch header.
#pragma once

#include <pybind11/pybind11.h>

#include <stdexcept>
#include <string>
#include <type_traits>

#include "table.h"

namespace py = pybind11;

namespace ragrad {

template <class T>
constexpr dlpack::DataType dtype_of() {
  if (std::is_same_v<T, bool>) return {dlpack::kBool, 8, 1};
  return {dlpack::kFloat, 8 * sizeof(T), 1};
}

// Reads torch tensors through the table of C functions that their type offers.
class Reader {
 public:
  explicit Reader(py::object tensor_type) : type_(std::move(tensor_type)) {
    py::object capsule = type_.attr("__dlpack_c_exchange_api__");
    api_ = static_cast<const dlpack::ExchangeApi*>(
        PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!api_) throw py::error_already_set();
    if (api_->version.major != 1) {
      throw std::runtime_error("this torch speaks DLPack " + std::to_string(api_->version.major) +
                               ", the native backend speaks DLPack 1");
    }
  }

  dlpack::Tensor operator()(PyObject* object) const {
    if (!PyObject_TypeCheck(object, reinterpret_cast<PyTypeObject*>(type_.ptr()))) {
      throw py::type_error(std::string("expected a tensor, found ") + Py_TYPE(object)->tp_name);
    }
    dlpack::Tensor tensor;
    if (api_->tensor_from_object(object, &tensor) != 0) throw py::error_already_set();
    return tensor;
  }

  void operator()(const py::sequence& objects, Tensors& out) const {
    const auto fast = py::reinterpret_steal<py::object>(
        PySequence_Fast(objects.ptr(), "expected a list of tensors"));
    if (!fast) throw py::error_already_set();
    const auto n = size_t(PySequence_Fast_GET_SIZE(fast.ptr()));
    PyObject** items = PySequence_Fast_ITEMS(fast.ptr());
    out.resize(n);
    for (size_t l = 0; l < n; ++l) {
      if (items[l] == Py_None) {
        out[l].reset();
      } else {
        out[l] = (*this)(items[l]);
      }
    }
  }

  // The memory of a whole tensor of so many elements, made for this call.
  template <class T>
  T* memory(const py::object& object, const char* name, int64_t elements) const {
    const dlpack::Tensor tensor = (*this)(object.ptr());
    const dlpack::DataType dtype = tensor.dtype, expected = dtype_of<std::remove_const_t<T>>();
    int64_t found = 1;
    bool dense = true;
    for (int d = tensor.ndim - 1; d >= 0; --d) {
      dense = dense && (tensor.shape[d] == 1 || tensor.strides[d] == found);
      found *= tensor.shape[d];
    }
    if (dtype.code != expected.code || dtype.bits != expected.bits || dtype.lanes != 1) {
      throw std::invalid_argument(std::string(name) +
                                  " has the wrong dtype for the compiled module");
    }
    if (found != elements || (!dense && found > 0)) {
      throw std::invalid_argument(std::string(name) + " has " + std::to_string(found) +
                                  (dense ? "" : " scattered") + " elements, expected " +
                                  std::to_string(elements) + " consecutive ones");
    }
    return reinterpret_cast<T*>(static_cast<char*>(tensor.data) + tensor.byte_offset);
  }

  template <class T>
  T* memory_or_null(const py::object& object, const char* name, int64_t elements) const {
    return object.is_none() ? nullptr : memory<T>(object, name, elements);
  }

  void* stream(dlpack::Device device) const {
    void* stream = nullptr;
    if (api_->current_stream(device.type, device.id, &stream) != 0) throw py::error_already_set();
    return stream;
  }

  const py::object& type() const { return type_; }

 private:
  py::object type_;
  const dlpack::ExchangeApi* api_;
};

}  // namespace ragrad
