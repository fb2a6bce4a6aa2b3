#include "random_model.h"

#include <cmath>
#include <cstring>

namespace moekit::tests {
namespace {

constexpr int64_t VOCABULARY = 37;

// Where the fp16 scales of a block lie.
std::vector<int64_t> scales_of(Type type) {
    switch (type) {
        case Type::Q4_0:
        case Type::Q8_0:
            return {0};
        case Type::Q4_K:
            return {0, 2};
        case Type::Q6_K:
            return {208};
        default:
            return {};
    }
}

Rope rope(int64_t head_width, double base, bool interleaved) {
    Rope made;
    for (int64_t i = 0; i < head_width / 2; ++i) {
        made.frequencies.push_back(std::pow(base, -2.0 * static_cast<double>(i) / static_cast<double>(head_width)));
    }
    made.interleaved = interleaved;
    return made;
}

class Maker {
   public:
    Maker(RandomMemory& memory, Type type, int64_t width) : memory_(memory), type_(type), width_(width) {}

    Norm norm(int64_t count) { return {memory_.vector(count, 1.0f), 1e-5f}; }

    Attention attention(int64_t heads, int64_t kv_heads, int64_t head_width, int64_t rope) {
        Attention made;
        made.heads = heads;
        made.kv_heads = kv_heads;
        made.head_width = head_width;
        made.query = matrix(made.query_rows(), width_);
        made.key = matrix(made.key_rows(), width_);
        made.value = matrix(made.key_rows(), width_);
        made.output = matrix(width_, made.query_rows());
        made.rope = rope;
        made.scale = 1.0f / std::sqrt(static_cast<float>(head_width));
        return made;
    }

    Ffn ffn(int64_t hidden, int64_t experts, ActivationFunction function, bool gated) {
        return {hidden, gated ? matrix(experts * hidden, width_) : Matrix{}, matrix(experts * hidden, width_),
                matrix(experts * width_, hidden), function};
    }

    Layer layer(const Attention& attention, const Ffn& ffn) {
        Layer made;
        made.attention_norm = norm(width_);
        made.attention = attention;
        made.ffn_norm = norm(width_);
        made.ffn = ffn;
        return made;
    }

    Matrix matrix(int64_t rows, int64_t columns) { return memory_.matrix(type_, rows, columns); }

   private:
    RandomMemory& memory_;
    Type type_;
    int64_t width_;
};

}  // namespace

uint16_t RandomMemory::half() { return static_cast<uint16_t>(0x2000u | (random_() & 0x3ffu)); }

Matrix RandomMemory::matrix(Type type, int64_t rows, int64_t columns) {
    const int64_t size = rows * columns / block_numbers(type) * block_bytes(type);
    kept_.push_back(std::make_unique<uint8_t[]>(static_cast<size_t>(size + 1)));
    uint8_t* data = kept_.back().get() + 1;
    for (int64_t i = 0; i < size; ++i) {
        data[i] = static_cast<uint8_t>(random_());
    }
    for (int64_t at = 0; at < size; at += block_bytes(type)) {
        for (const int64_t scale : scales_of(type)) {
            const uint16_t number = half();
            std::memcpy(data + at + scale, &number, sizeof number);
        }
        // Signs and digits stay random, exponents are near that of 0.1.
        if (type == Type::F32) {
            data[at + 3] = static_cast<uint8_t>((data[at + 3] & 0x80) | 0x3d);
        } else if (type == Type::F16) {
            data[at + 1] = static_cast<uint8_t>((data[at + 1] & 0x83) | 0x2c);
        } else if (type == Type::BF16) {
            data[at + 1] = static_cast<uint8_t>((data[at + 1] & 0x80) | 0x3d);
        }
    }
    return {data, type, rows, columns};
}

std::vector<float> RandomMemory::floats(int64_t count, float mean) {
    std::normal_distribution<float> normal(mean, mean == 0 ? 1.0f : 0.2f);
    std::vector<float> made(static_cast<size_t>(count));
    for (float& number : made) {
        number = normal(random_);
    }
    return made;
}

Vector RandomMemory::vector(int64_t count, float mean) {
    const std::vector<float> numbers = floats(count, mean);
    kept_.push_back(std::make_unique<uint8_t[]>(numbers.size() * sizeof(float)));
    std::memcpy(kept_.back().get(), numbers.data(), numbers.size() * sizeof(float));
    return {reinterpret_cast<const float*>(kept_.back().get()), count};
}

std::vector<int64_t> RandomMemory::tokens(int64_t count, int64_t vocabulary) {
    std::vector<int64_t> made(static_cast<size_t>(count));
    for (int64_t& token : made) {
        token = static_cast<int64_t>(random_()) % vocabulary;
    }
    return made;
}

Model random_model(RandomMemory& memory, Type type, int64_t width) {
    Maker make(memory, type, width);
    const int64_t block = block_numbers(type);  // hidden widths and heads side by side are whole blocks
    const int64_t hidden = (45 + block - 1) / block * block, head = block == 1 ? 10 : block;
    Model model;
    model.width = width;
    model.vocabulary = VOCABULARY;
    model.ropes = {rope(head, 100, true), rope(2 * head, 10000, false)};

    Layer local = make.layer(make.attention(4, 2, head, 0), make.ffn(hidden, 1, ActivationFunction::GeluTanh, true));
    local.attention.window = 5;
    local.attention.query_norm = make.norm(head);
    local.attention.key_norm = make.norm(head);
    local.attention_post_norm = make.norm(width);
    local.ffn_post_norm = make.norm(width);

    Layer moe = make.layer(make.attention(3, 1, 2 * head, 1), make.ffn(hidden, 5, ActivationFunction::Silu, true));
    moe.attention.soft_cap = 5;
    moe.attention.norm_all_heads = true;
    moe.attention.query_norm = make.norm(moe.attention.query_rows());
    moe.attention.key_norm = make.norm(moe.attention.key_rows());
    moe.moe = {5,
               2,
               true,
               memory.matrix(Type::F32, 5, width),
               make.ffn(2 * hidden, 1, ActivationFunction::Silu, true),
               memory.vector(width, 0)};

    Layer plain = make.layer(make.attention(2, 2, head, Attention::NO_ROPE),
                             make.ffn(hidden, 1, ActivationFunction::Relu, false));
    plain.attention.query_bias = memory.vector(plain.attention.query_rows(), 0);
    plain.attention.output_bias = memory.vector(width, 0);

    model.layers = {local, moe, plain};
    model.embedding = make.matrix(VOCABULARY, width);
    model.head = make.matrix(VOCABULARY, width);
    model.norm = make.norm(width);
    return model;
}

}  // namespace moekit::tests
