#include "proto/tensor_shape.h"

#include <cmath>
#include <set>

#include <gtest/gtest.h>

namespace ringserve {
namespace {

v1::AttentionSpec Spec(v1::TensorLayout layout, v1::DType dtype = v1::DTYPE_F32) {
  v1::AttentionSpec spec;
  spec.set_batch(2);
  spec.set_q_heads(6);
  spec.set_kv_heads(3);
  spec.set_q_len(5);
  spec.set_kv_len(7);
  spec.set_head_dim(8);
  spec.set_value_dim(4);
  spec.set_dtype(dtype);
  spec.set_tensor_layout(layout);
  return spec;
}

TEST(TensorShape, HeadMajorTensorsHaveAPlanePerHead) {
  for (const v1::TensorLayout layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_UNSPECIFIED}) {
    const v1::AttentionSpec spec = Spec(layout);
    EXPECT_TRUE(IsHeadMajor(spec));
    EXPECT_EQ(ShapeOf(v1::TENSOR_ID_Q, spec), (TensorShape{2, 6, 5, 32}));
    EXPECT_EQ(ShapeOf(v1::TENSOR_ID_K, spec), (TensorShape{2, 3, 7, 32}));
    EXPECT_EQ(ShapeOf(v1::TENSOR_ID_V, spec), (TensorShape{2, 3, 7, 16}));
    EXPECT_EQ(ShapeOf(v1::TENSOR_ID_OUT, spec), (TensorShape{2, 6, 5, 16}));
  }
}

TEST(TensorShape, TokenMajorTensorsHaveOnePlanePerBatchRow) {
  const v1::AttentionSpec spec = Spec(v1::TENSOR_LAYOUT_BSHD);
  EXPECT_FALSE(IsHeadMajor(spec));
  EXPECT_EQ(ShapeOf(v1::TENSOR_ID_Q, spec), (TensorShape{2, 1, 5, 192}));
  EXPECT_EQ(ShapeOf(v1::TENSOR_ID_K, spec), (TensorShape{2, 1, 7, 96}));
  EXPECT_EQ(ShapeOf(v1::TENSOR_ID_V, spec), (TensorShape{2, 1, 7, 48}));
  EXPECT_EQ(ShapeOf(v1::TENSOR_ID_OUT, spec), (TensorShape{2, 1, 5, 96}));
}

TEST(TensorShape, LseIsHeadMajorInEitherLayoutAndInTheAccumulatorsType) {
  for (const v1::TensorLayout layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}) {
    for (const auto& [dtype, bytes] : {std::pair{v1::DTYPE_F32, 4}, std::pair{v1::DTYPE_F64, 8},
                                       std::pair{v1::DTYPE_BF16, 4}, std::pair{v1::DTYPE_F16, 4}}) {
      EXPECT_EQ(ShapeOf(v1::TENSOR_ID_LSE, Spec(layout, dtype)), (TensorShape{2, 6, 5, bytes}));
    }
  }
}

TEST(TensorShape, GradientsHaveTheShapesOfTheirTensors) {
  v1::AttentionSpec spec = Spec(v1::TENSOR_LAYOUT_BSHD, v1::DTYPE_F64);
  spec.set_sink_logits(true);
  for (const auto& [gradient, tensor] :
       {std::pair{v1::TENSOR_ID_D_OUT, v1::TENSOR_ID_OUT},
        {v1::TENSOR_ID_D_LSE, v1::TENSOR_ID_LSE},
        {v1::TENSOR_ID_D_Q, v1::TENSOR_ID_Q},
        {v1::TENSOR_ID_D_K, v1::TENSOR_ID_K},
        {v1::TENSOR_ID_D_V, v1::TENSOR_ID_V},
        {v1::TENSOR_ID_D_SINK_LOGITS, v1::TENSOR_ID_SINK_LOGITS}}) {
    EXPECT_EQ(ShapeOf(gradient, spec), ShapeOf(tensor, spec)) << TensorName(gradient);
    EXPECT_EQ(IsOfKeys(gradient), IsOfKeys(tensor));
    EXPECT_EQ(IsPerHead(gradient), IsPerHead(tensor));
  }
}

TEST(TensorShape, APassHasItsUploadsAndResults) {
  v1::AttentionSpec spec = Spec(v1::TENSOR_LAYOUT_BHSD);
  EXPECT_EQ(UploadsOf(spec).size(), 3u);
  EXPECT_EQ(UploadsOf(spec, {.backward = true}).size(), 6u);
  EXPECT_EQ(UploadsOf(spec, {.backward = true, .d_lse = true}).size(), 7u);
  EXPECT_EQ(ResultsOf(spec, {}, false).size(), 1u);
  EXPECT_EQ(ResultsOf(spec, {}, true).size(), 2u);
  EXPECT_EQ(ResultsOf(spec, {.backward = true}, false).size(), 3u);
  spec.set_sink_logits(true);
  EXPECT_EQ(ResultsOf(spec, {.backward = true}, false).size(), 4u);
}

TEST(TensorShape, BytesAreTheProductOfTheDims) {
  for (const auto& [dtype, element] : {std::pair{v1::DTYPE_F32, 4}, std::pair{v1::DTYPE_F64, 8},
                                       std::pair{v1::DTYPE_BF16, 2}, std::pair{v1::DTYPE_F16, 2}}) {
    EXPECT_EQ(ElementBytes(dtype), element);
    for (const v1::TensorLayout layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}) {
      const v1::AttentionSpec spec = Spec(layout, dtype);
      EXPECT_EQ(ShapeOf(v1::TENSOR_ID_Q, spec).bytes(), 2u * 6 * 5 * 8 * element);
      EXPECT_EQ(ShapeOf(v1::TENSOR_ID_K, spec).bytes(), 2u * 3 * 7 * 8 * element);
      EXPECT_EQ(ShapeOf(v1::TENSOR_ID_V, spec).bytes(), 2u * 3 * 7 * 4 * element);
      EXPECT_EQ(ShapeOf(v1::TENSOR_ID_OUT, spec).bytes(), 2u * 6 * 5 * 4 * element);
    }
  }
  EXPECT_EQ(ElementBytes(v1::DTYPE_UNSPECIFIED), 0);
}

TEST(TensorShape, BytesReachTheLimitWithoutOverflow) {
  v1::AttentionSpec spec;
  spec.set_batch(int64_t{1} << 30);
  spec.set_q_heads(1);
  spec.set_kv_heads(1);
  spec.set_q_len(int64_t{1} << 30);
  spec.set_kv_len(1);
  spec.set_head_dim(1);
  spec.set_dtype(v1::DTYPE_F16);
  EXPECT_EQ(ShapeOf(v1::TENSOR_ID_Q, spec).bytes(), uint64_t{1} << 61);
}

TEST(TensorShape, OfABiasHasTheKeysOfAQueryAsItsRow) {
  v1::AttentionSpec spec;
  spec.set_batch(3);
  spec.set_q_heads(8);
  spec.set_q_len(20);
  spec.set_kv_len(30);
  spec.set_dtype(v1::DTYPE_BF16);
  for (const v1::TensorLayout layout : {v1::TENSOR_LAYOUT_BHSD, v1::TENSOR_LAYOUT_BSHD}) {
    spec.set_tensor_layout(layout);
    spec.mutable_bias()->Clear();
    EXPECT_EQ(ShapeOf(v1::TENSOR_ID_BIAS, spec), (TensorShape{1, 1, 20, 60}));
    spec.mutable_bias()->set_per_batch(true);
    EXPECT_EQ(ShapeOf(v1::TENSOR_ID_BIAS, spec), (TensorShape{3, 1, 20, 60}));
    spec.mutable_bias()->set_per_head(true);
    EXPECT_EQ(ShapeOf(v1::TENSOR_ID_BIAS, spec), (TensorShape{3, 8, 20, 60}));
    spec.mutable_bias()->set_boolean(true);
    EXPECT_EQ(ShapeOf(v1::TENSOR_ID_BIAS, spec), (TensorShape{3, 8, 20, 30}));
    EXPECT_EQ(ShapeOf(v1::TENSOR_ID_ALIBI_SLOPES, spec), (TensorShape{1, 1, 8, 4}));
    EXPECT_EQ(ShapeOf(v1::TENSOR_ID_SINK_LOGITS, spec), (TensorShape{1, 1, 8, 4}));
  }
}

TEST(TensorShape, UploadsAreThoseThatTheSpecHas) {
  v1::AttentionSpec spec;
  EXPECT_EQ(UploadsOf(spec), (std::vector{v1::TENSOR_ID_Q, v1::TENSOR_ID_K, v1::TENSOR_ID_V}));
  spec.set_sink_logits(true);
  EXPECT_FALSE(ScoresByPosition(spec));
  spec.set_alibi_slopes(true);
  EXPECT_TRUE(ScoresByPosition(spec));
  spec.mutable_bias();
  EXPECT_EQ(UploadsOf(spec),
            (std::vector{v1::TENSOR_ID_Q, v1::TENSOR_ID_K, v1::TENSOR_ID_V, v1::TENSOR_ID_BIAS,
                         v1::TENSOR_ID_ALIBI_SLOPES, v1::TENSOR_ID_SINK_LOGITS}));
}

TEST(TensorShape, ValueDimAndScaleHaveDefaults) {
  v1::AttentionSpec spec;
  spec.set_head_dim(64);
  EXPECT_EQ(ValueDim(spec), 64);
  EXPECT_EQ(Scale(spec), 0.125);
  spec.set_value_dim(16);
  spec.set_scale(0);  // given, though it is 0
  EXPECT_EQ(ValueDim(spec), 16);
  EXPECT_EQ(Scale(spec), 0);
  spec.set_scale(-2.5);
  EXPECT_EQ(Scale(spec), -2.5);
}

TEST(TensorShape, EveryTensorHasANameOfItsOwn) {
  std::set<std::string> names;
  for (int id = v1::TensorId_MIN + 1; id <= v1::TensorId_MAX; ++id) {
    const std::string name = TensorName(static_cast<v1::TensorId>(id));
    EXPECT_EQ(name.find(' '), std::string::npos) << name;
    EXPECT_TRUE(names.insert(name).second) << name;
  }
  EXPECT_EQ(TensorName(static_cast<v1::TensorId>(99)), "tensor 99");
  EXPECT_EQ(TensorName(static_cast<v1::TensorId>(-1)), "tensor -1");
  EXPECT_EQ(TensorName(v1::TENSOR_ID_UNSPECIFIED), "tensor 0");
}

}  // namespace
}  // namespace ringserve
