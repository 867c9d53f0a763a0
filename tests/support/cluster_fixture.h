// Tests that share one cluster, which each leaves idle. A suite says which:
//   static void SetUpTestSuite() { Start({.workers = 3}); }
#pragma once

#include <utility>

#include <gtest/gtest.h>

#include "tests/support/cluster.h"

namespace ringserve::test {

class ClusterTest : public ::testing::Test {
 protected:
  static void Start(ClusterOptions options) { cluster_ = new Cluster(std::move(options)); }
  static void TearDownTestSuite() {
    delete cluster_;
    cluster_ = nullptr;
  }
  void TearDown() override {
    EXPECT_TRUE(cluster_->AwaitIdle());
    if (HasFailure()) ADD_FAILURE() << cluster_->Logs();
  }

  static Client& client() { return cluster_->client(); }

  static inline Cluster* cluster_ = nullptr;
};

}  // namespace ringserve::test
