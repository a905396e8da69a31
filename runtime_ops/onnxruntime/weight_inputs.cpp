#include "weight_inputs.h"

namespace qxc::ort {
namespace {

constexpr char kLayout[] = "tile16.v1";

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::vector<WeightType> make_weight_types() {
  struct Codes {
    const char* name;
    qxc_code code;
    std::vector<int> bits;
    std::vector<ElementType> tables;
    bool says_bits = false;  // the name
  };
  struct Scales {
    const char* name;
    qxc_scale scale;
    std::vector<ElementType> tensors;
  };
  const Codes codes[] = {{"Int", QXC_INT, {2, 3, 4, 5, 6, 8}, {}}, {"UInt", QXC_UINT, {2, 3, 4, 5, 6, 8}, {kUint8}},
                         {"Lut", QXC_LUT, {2, 3, 4}, {kInt8}},     {"Fp", QXC_FP, {4}, {}},
                         {"E2M3", QXC_E2M3, {6}, {}, true},        {"E3M2", QXC_E3M2, {6}, {}, true},
                         {"E4M3", QXC_E4M3, {8}, {}, true},        {"E5M2", QXC_E5M2, {8}, {}, true}};
  const Scales scales[] = {{"", QXC_SCALE_FLOAT16, {kFloat16}},
                           {"E8", QXC_SCALE_E8M0, {kUint8}},
                           {"S8", QXC_SCALE_TWO_LEVEL, {kUint8, kFloat16}}};
  std::vector<WeightType> types;
  for (const Codes& code : codes) {
    for (const int bits : code.bits) {
      for (const Scales& scale : scales) {
        std::vector<ElementType> tensors{kUint8};
        tensors.insert(tensors.end(), scale.tensors.begin(), scale.tensors.end());
        tensors.insert(tensors.end(), code.tables.begin(), code.tables.end());
        types.push_back({code.code, bits, scale.scale,
                         code.name + (code.says_bits ? "" : std::to_string(bits)) + scale.name, tensors});
      }
    }
  }
  return types;
}

}  // namespace

const std::vector<WeightType>& weight_types() {
  static const std::vector<WeightType> types = make_weight_types();
  return types;
}

WeightInputs::WeightInputs(const WeightType& type, const Node& node, const KernelInfo& info, size_t first) {
  weight_.code = type.code;
  weight_.bits = type.bits;
  weight_.scale = type.scale;
  weight_.rows = node.attribute_int(info, "N");
  weight_.columns = node.attribute_int(info, "K");
  weight_.group_size = node.attribute_int(info, "group_size");
  const std::string layout = node.attribute_string(info, "layout");
  if (layout != kLayout) {
    throw node.error(kInvalidGraph, "layout '" + printable(layout) + "' is not known to this library, which reads '" +
                                        kLayout + "': a newer qxcompiler may");
  }
  qxc_weight_bytes bytes;
  switch (qxc_weight_check(&weight_, &bytes)) {
    case QXC_OK: break;
    case QXC_BAD_SIZE:
      throw node.error(kInvalidGraph, "K = " + std::to_string(weight_.columns) +
                                          ", N = " + std::to_string(weight_.rows) + " is no matrix");
    default:
      throw node.error(kInvalidGraph,
                       "group_size " + std::to_string(weight_.group_size) + " is neither 16, 32, 64, 128, 256 nor K");
  }

  const int64_t tiles = ceil_div(weight_.rows, QXC_TILE_ROWS);
  const int64_t entries = int64_t{1} << type.bits;
  const Shape per_group{tiles, ceil_div(weight_.columns, weight_.group_size), QXC_TILE_ROWS};
  const auto expect = [&](const char* name, std::vector<Shape> shapes) {
    const size_t at = inputs_.size();
    inputs_.push_back({first + at, name, type.tensors[at], std::move(shapes)});
  };
  expect("packed", {{tiles, ceil_div(weight_.columns, QXC_BLOCK_COLUMNS), weight_.bits, QXC_LINE_BYTES}});
  expect("scales", {per_group});
  if (type.scale == QXC_SCALE_TWO_LEVEL) expect("row_scales", {{tiles, 1, QXC_TILE_ROWS}});
  if (type.code == QXC_UINT) expect("zero_points", {per_group});
  if (type.code == QXC_LUT) expect("codebook", {{1, 1, entries}, {tiles, QXC_TILE_ROWS, entries}});
  for (ExpectedInput& expected : inputs_) node.check_constant(info, expected);
}

qxc_weight WeightInputs::read(const Node& node, const KernelContext& context) const {
  qxc_weight weight = weight_;
  size_t at = 0;
  const auto next = [&] { return node.read(context, inputs_[at++]); };
  weight.packed = next().data;
  weight.scales = next().data;
  if (weight.scale == QXC_SCALE_TWO_LEVEL) weight.row_scales = next().data;
  if (weight.code == QXC_UINT) weight.zero_points = next().data;
  if (weight.code == QXC_LUT) {
    const Tensor codebook = next();
    weight.codebook = codebook.data;
    weight.codebook_per_tensor = codebook.shape == inputs_.back().shapes[0];
  }
  return weight;
}

}  // namespace qxc::ort
