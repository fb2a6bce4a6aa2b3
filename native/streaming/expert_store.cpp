#include "streaming/expert_store.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>

#include "streaming/seconds_now.h"

namespace moekit {
int64_t ExpertStore::place_bytes(const StreamedLayer& layer) {
    int64_t most = 0;
    for (const StreamedLayer::Expert& expert : layer.experts) {
        most = std::max(most, blocks_bytes(expert.data(), expert.data() + expert.size()));
    }
    return most;
}

void ExpertStore::check(const StreamedLayer& layer) const {
    for (const StreamedLayer::Expert& expert : layer.experts) {
        for (const Span& span : expert) {
            if (!lies_within(span, files_)) {
                throw std::invalid_argument("an expert does not lie within its file");
            }
        }
    }
}

ExpertStore::ExpertStore(const std::vector<std::string>& paths, std::vector<StreamedLayer> layers,
                         const StoreOptions& options) {
    files_ = open_files(paths, options.direct);
    int64_t largest = 0, passing = 0;
    for (const StreamedLayer& layer : layers) {
        check(layer);
        const auto experts = static_cast<int64_t>(layer.experts.size());
        bytes_ += std::min(layer.places, experts) * place_bytes(layer);
        if (layer.places < experts) {
            largest = std::max(largest, place_bytes(layer));
            passing = std::max<int64_t>(1, options.passing);
        }
    }
    bytes_ += passing * largest;
    memory_ = huge_pages(bytes_);
    uint8_t* memory = memory_.get();
    const auto add = [&](int64_t bytes) {
        places_.push_back(std::make_unique<Place>());
        places_.back()->memory = memory;
        memory += bytes;
        return places_.back().get();
    };
    for (StreamedLayer& plan : layers) {
        const auto experts = static_cast<int64_t>(plan.experts.size());
        Layer layer{{}, Policy(options.policy, experts), {}, std::vector<Place*>(experts), std::vector<char>(experts)};
        for (int64_t i = 0; i < std::min(plan.places, experts); ++i) {
            layer.own.push_back(add(place_bytes(plan)));
        }
        layer.plan = std::move(plan);
        layers_.push_back(std::move(layer));
    }
    for (int64_t i = 0; i < passing; ++i) {
        passing_.push_back(add(largest));
    }
    reader_ = std::make_unique<Reader>(files_, options.threads);
}

void ExpertStore::begin(int64_t layer, const std::vector<int64_t>& experts) {
    layer_ = layer;
    experts_ = experts;
    given_.clear();
    waiting_.clear();
    Layer& here = layers_[layer];
    here.policy.use(experts);
    std::fill(here.used.begin(), here.used.end(), 0);
    for (size_t i = 0; i < experts.size(); ++i) {
        here.used[experts[i]] = 1;
        waiting_.push_back(static_cast<int64_t>(i));
        Place* place = here.of_expert[experts[i]];
        if (!place) {
            ++counts_.misses;
            continue;
        }
        place->in_use = true;
        if (place->foreseen) {
            place->foreseen = false;
            ++counts_.foreseen_used;
        }
        if (reading(*place)) {
            reader_->hurry(place->load);
            ++counts_.misses;
        } else {
            ++counts_.hits;
        }
    }
    read_missing();
}

void ExpertStore::read_missing() {
    Layer& here = layers_[layer_];
    for (const int64_t index : waiting_) {
        const int64_t expert = experts_[index];
        if (!here.of_expert[expert]) {
            if (!read(layer_, expert, true, true)) {
                return;
            }
            here.of_expert[expert]->in_use = true;
        }
    }
}

bool ExpertStore::read(int64_t layer, int64_t expert, bool urgent, bool keep) {
    Place* place = free_place(layers_[layer], keep);
    if (!place) {
        return false;
    }
    vacate(*place);
    place->layer = layer;
    place->expert = expert;
    place->load.pieces.clear();
    uint8_t* memory = place->memory;
    for (const Span& span : layers_[layer].plan.experts[expert]) {
        if (span.bytes) {
            place->load.pieces.push_back({DirectFile::blocks(span), memory});
            memory += DirectFile::blocks(span).bytes;
        }
    }
    layers_[layer].of_expert[expert] = place;
    reader_->start(place->load, urgent);
    return true;
}

ExpertStore::Place* ExpertStore::free_place(Layer& layer, bool keep) {
    candidates_.clear();
    for (Place* place : layer.own) {
        if (place->expert < 0) {
            return place;
        }
        if (!layer.used[place->expert] && !place->in_use && !reading(*place)) {
            candidates_.push_back(place->expert);
        }
    }
    if (keep) {
        const int64_t victim = layer.policy.victim(candidates_);
        if (victim != Policy::NONE) {
            return layer.of_expert[victim];
        }
    }
    const auto found = std::find_if(passing_.begin(), passing_.end(),
                                    [&](const Place* place) { return !place->in_use && !reading(*place); });
    if (found == passing_.end()) {
        return nullptr;
    }
    std::rotate(found, found + 1, passing_.end());
    return passing_.back();
}

void ExpertStore::vacate(Place& place) {
    if (place.expert >= 0) {
        layers_[place.layer].of_expert[place.expert] = nullptr;
    }
    place.layer = place.expert = -1;
    place.foreseen = false;
}

void ExpertStore::next() {
    Layer& here = layers_[layer_];
    for (const int64_t index : given_) {
        here.of_expert[experts_[index]]->in_use = false;
    }
    given_.clear();
    if (waiting_.empty()) {
        return;
    }
    read_missing();
    if (!find_ready()) {
        const double since = seconds_now();
        if (loads_.empty()) {
            // What was foreseen, wrongly, has all the places.
            reader_->wait_for_all();
            read_missing();
            find_ready();
        }
        reader_->wait_for_any(loads_);
        find_ready();
        counts_.stall_seconds += seconds_now() - since;
    }
    const auto was_given = [&](int64_t index) { return std::binary_search(given_.begin(), given_.end(), index); };
    waiting_.erase(std::remove_if(waiting_.begin(), waiting_.end(), was_given), waiting_.end());
}

bool ExpertStore::find_ready() {
    Layer& here = layers_[layer_];
    loads_.clear();
    given_.clear();
    for (const int64_t index : waiting_) {
        Place* place = here.of_expert[experts_[index]];
        if (!place) {
            continue;
        }
        loads_.push_back(&place->load);
        const Load::State state = reader_->state(place->load);
        if (state == Load::State::Failed) {
            fail(*place);
        }
        if (state != Load::State::Reading) {
            given_.push_back(index);
        }
    }
    return !given_.empty();
}

// Zeros are finite in any type, and the step goes on to its end.
void ExpertStore::fail(Place& place) {
    for (const Piece& piece : place.load.pieces) {
        std::memset(piece.into, 0, piece.blocks.bytes);
    }
    failed_ = true;
}

const uint8_t* ExpertStore::matrix(int64_t expert, int which) const {
    const Layer& here = layers_[layer_];
    return here.of_expert[expert]->memory + place_of(here.plan.experts[expert].data(), which);
}

void ExpertStore::foresee(int64_t layer, const std::vector<int64_t>& experts) {
    Layer& there = layers_[layer];
    std::fill(there.used.begin(), there.used.end(), 0);
    for (const int64_t expert : experts) {
        there.used[expert] = 1;
    }
    for (const int64_t expert : experts) {
        if (!foresee(layer, expert, true)) {
            return;
        }
    }
}

void ExpertStore::foresee_all(int64_t layer) {
    if (2 * experts_.size() < layers_[layer_].of_expert.size()) {
        return;
    }
    for (size_t expert = 0; expert < layers_[layer].of_expert.size(); ++expert) {
        if (!foresee(layer, static_cast<int64_t>(expert), false)) {
            return;
        }
    }
}

bool ExpertStore::foresee(int64_t layer, int64_t expert, bool keep) {
    Layer& there = layers_[layer];
    if (there.of_expert[expert]) {
        return true;
    }
    if (!read(layer, expert, false, keep)) {
        return false;
    }
    there.of_expert[expert]->foreseen = true;
    ++counts_.foreseen;
    return true;
}

std::string ExpertStore::take_error() {
    if (!failed_) {
        return {};
    }
    failed_ = false;
    reader_->wait_for_all();
    for (const auto& place : places_) {
        if (place->expert >= 0 && reader_->state(place->load) == Load::State::Failed) {
            vacate(*place);
        }
    }
    return reader_->take_error();
}

StoreCounts ExpertStore::counts() const {
    StoreCounts counts = counts_;
    const Reader::Counts read = reader_->counts();
    counts.bytes = read.bytes;
    counts.busy_seconds = read.busy_seconds;
    return counts;
}

}  // namespace moekit
