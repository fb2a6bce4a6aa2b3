#include "bindings/tensors.h"

#include <algorithm>

namespace moekit {
namespace {

// As DLPack lays it out (dlpack.h, DLPackExchangeAPI). Earlier members are not called here.
struct ExchangeTable {
    uint32_t major;
    uint32_t minor;
    ExchangeTable* older;
    void* before[3];
    int (*view)(void* object, nb::dlpack::dltensor* out);  // may be null
    void* current_stream;
};
constexpr uint32_t MAJOR = 1;
constexpr int32_t CPU = 1;

// What a type offers; null where it offers nothing that is understood here.
const ExchangeTable* table_of(PyTypeObject* type) noexcept {
    PyObject* capsule = PyObject_GetAttrString(reinterpret_cast<PyObject*>(type), "__dlpack_c_exchange_api__");
    if (!capsule) {
        PyErr_Clear();
        return nullptr;
    }
    const auto* table = static_cast<const ExchangeTable*>(PyCapsule_GetPointer(capsule, "dlpack_exchange_api"));
    Py_DECREF(capsule);  // the table lives as long as the process
    PyErr_Clear();
    while (table && table->major > MAJOR) {
        table = table->older;
    }
    return table && table->major == MAJOR && table->view ? table : nullptr;
}

bool dense(const nb::dlpack::dltensor& tensor) {
    if (std::find(tensor.shape, tensor.shape + tensor.ndim, 0) != tensor.shape + tensor.ndim) {
        return true;
    }
    int64_t stride = 1;
    for (int i = tensor.ndim - 1; i >= 0; --i) {
        if (tensor.strides && tensor.shape[i] != 1 && tensor.strides[i] != stride) {
            return false;
        }
        stride *= tensor.shape[i];
    }
    return true;
}

}  // namespace

bool view_tensor(PyObject* object, nb::dlpack::dtype dtype, TensorView& view) noexcept {
    // Tensors and parameters are all that comes, by turns; with the GIL held, nobody else is here. Types are never
    // freed while they are remembered.
    static struct {
        PyTypeObject* type;
        const ExchangeTable* table;
    } known[4];
    static int next = 0;
    PyTypeObject* type = Py_TYPE(object);
    const ExchangeTable* table = nullptr;
    for (const auto& one : known) {
        if (one.type == type) {
            table = one.table;
        }
    }
    if (!table) {
        table = table_of(type);
        if (!table) {
            return false;
        }
        Py_INCREF(reinterpret_cast<PyObject*>(type));
        Py_XDECREF(reinterpret_cast<PyObject*>(known[next].type));
        known[next] = {type, table};
        next = (next + 1) % 4;
    }
    nb::dlpack::dltensor tensor;
    if (table->view(object, &tensor) != 0) {
        PyErr_Clear();
        return false;
    }
    if (tensor.device.device_type != CPU || tensor.dtype != dtype || tensor.ndim > TensorView::MOST_DIMENSIONS ||
        !dense(tensor)) {
        return false;
    }
    view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
    view.dimensions = tensor.ndim;
    for (int i = 0; i < tensor.ndim; ++i) {
        view.shape[i] = tensor.shape[i];
    }
    return true;
}

}  // namespace moekit
