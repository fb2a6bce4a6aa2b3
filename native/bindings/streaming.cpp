// What is read around the page cache, and the experts and blocks of models that lie on disk, in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "bindings/arrays.h"
#include "kernels/aligned_bytes.h"
#include "streaming/block_ring.h"
#include "streaming/direct_file.h"
#include "streaming/disk_speed.h"
#include "streaming/expert_store.h"
#include "streaming/policy.h"
#include "streaming/prefetch_trial.h"

using namespace nanobind::literals;

namespace moekit {
namespace {

using Released = nb::call_guard<nb::gil_scoped_release>;

// Reads `bytes` of the file from `offset` into rows that lie one after another.
void read_into(const DirectFile& file, int64_t offset, const Array<uint8_t, 1>& into) {
    const Span span{offset, static_cast<int64_t>(into.size())};
    if (offset < 0 || span.end() > file.bytes()) {
        throw std::invalid_argument("the bytes lie beyond the end of " + file.path());
    }
    const nb::gil_scoped_release released;
    // Through memory that is aligned to blocks, some of them at a time.
    constexpr int64_t TOGETHER = 8 << 20;
    const AlignedBytes memory = huge_pages(TOGETHER);
    uint8_t* blocks = memory.get();
    for (int64_t at = span.offset; at < span.end();) {
        const int64_t begin = at / DirectFile::BLOCK * DirectFile::BLOCK;
        const int64_t end = std::min(span.end(), begin + TOGETHER);
        file.read(DirectFile::blocks({begin, end - begin}), blocks);
        std::memcpy(into.data() + (at - span.offset), blocks + (at - begin), end - at);
        at = end;
    }
}

}  // namespace

void bind_streaming(nb::module_& module) {
    nb::exception<ReadError>(module, "ReadError", PyExc_OSError);
    nb::class_<DirectFile>(module, "DirectFile")
        .def(nb::init<std::string, bool>(), "path"_a, "direct"_a = true)
        .def_prop_ro("bytes", &DirectFile::bytes)
        .def_prop_ro("direct", &DirectFile::direct)
        .def("read_into", &read_into, "offset"_a, "into"_a.noconvert());
    module.def("disk_speed", &disk_speed, "path"_a, "piece"_a, "threads"_a, "direct"_a, "seconds"_a, Released());
    nb::enum_<PolicyKind>(module, "PolicyKind")
        .value("lru", PolicyKind::Lru)
        .value("lfu", PolicyKind::Lfu)
        .value("lfru", PolicyKind::Lfru)
        .value("static", PolicyKind::Static);
    nb::enum_<Prefetch>(module, "Prefetch")
        .value("off", Prefetch::Off)
        .value("on", Prefetch::On)
        .value("measured", Prefetch::Measured);
    module.def("simulate_hits", &simulate_hits, "policy"_a, "experts"_a, "places"_a, "passes"_a, Released());
    nb::class_<Span>(module, "Span")
        .def(
            "__init__",
            [](Span* self, int64_t offset, int64_t bytes, int64_t file) { new (self) Span{offset, bytes, file}; },
            "offset"_a, "bytes"_a, "file"_a = 0);
    nb::class_<StreamedLayer>(module, "StreamedLayer")
        .def(
            "__init__",
            [](StreamedLayer* self, std::vector<std::array<Span, StreamedLayer::MATRICES>> experts, int64_t places) {
                new (self) StreamedLayer{std::move(experts), places};
            },
            "experts"_a, "places"_a);
    nb::class_<StoreCounts>(module, "StoreCounts")
        .def_ro("hits", &StoreCounts::hits)
        .def_ro("misses", &StoreCounts::misses)
        .def_ro("foreseen", &StoreCounts::foreseen)
        .def_ro("foreseen_used", &StoreCounts::foreseen_used)
        .def_ro("bytes", &StoreCounts::bytes)
        .def_ro("busy_seconds", &StoreCounts::busy_seconds)
        .def_ro("stall_seconds", &StoreCounts::stall_seconds);
    nb::class_<ExpertStore>(module, "ExpertStore")
        .def(
            "__init__",
            [](ExpertStore* self, const std::vector<std::string>& paths, std::vector<StreamedLayer> layers,
               PolicyKind policy, int64_t passing, int threads,
               bool direct) { new (self) ExpertStore(paths, std::move(layers), {policy, passing, threads, direct}); },
            nb::kw_only(), "paths"_a, "layers"_a, "policy"_a, "passing"_a, "threads"_a, "direct"_a, Released())
        .def_prop_ro("counts", &ExpertStore::counts);
    nb::enum_<BlockKind>(module, "BlockKind").value("attention", BlockKind::Attention).value("ffn", BlockKind::Ffn);
    nb::class_<StreamedBlock>(module, "StreamedBlock")
        .def(
            "__init__",
            [](StreamedBlock* self, int64_t layer, BlockKind kind, std::vector<Span> matrices) {
                new (self) StreamedBlock{layer, kind, std::move(matrices)};
            },
            "layer"_a, "kind"_a, "matrices"_a);
    nb::class_<RingCounts>(module, "RingCounts")
        .def_ro("bytes", &RingCounts::bytes)
        .def_ro("busy_seconds", &RingCounts::busy_seconds)
        .def_ro("stall_seconds", &RingCounts::stall_seconds);
    nb::class_<BlockRing>(module, "BlockRing")
        .def(
            "__init__",
            [](BlockRing* self, const std::vector<std::string>& paths, std::vector<StreamedBlock> blocks, int64_t bytes,
               int threads, bool direct) { new (self) BlockRing(paths, std::move(blocks), bytes, threads, direct); },
            nb::kw_only(), "paths"_a, "blocks"_a, "bytes"_a, "threads"_a, "direct"_a, Released())
        .def_prop_ro("counts", &BlockRing::counts);
}

}  // namespace moekit
