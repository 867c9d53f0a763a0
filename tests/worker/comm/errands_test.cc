#include "worker/comm/errands.h"

#include <gtest/gtest.h>

#include <chrono>
#include <memory>
#include <utility>

namespace ringserve {
namespace {

// Ends as a sender does: what it held is released on the errands' thread.
class Holder {
 public:
  Holder(Errands& errands, std::shared_ptr<int> held) : errands_(errands), held_(std::move(held)) {}
  ~Holder() { errands_.Release(std::move(held_)); }

 private:
  Errands& errands_;
  std::shared_ptr<int> held_;
};

TEST(Errands, AreNotRunBeforeTheirTimeAndDroppedAtTheEnd) {
  Errands errands;
  bool ran = false;
  errands.Run(std::chrono::hours(1), [&ran] { ran = true; });
  errands.Stop();
  EXPECT_FALSE(ran);
}

TEST(Errands, ReleaseWhatADroppedErrandHeld) {
  Errands errands;
  auto held = std::make_shared<int>(1);
  const std::weak_ptr<int> watch = held;
  errands.Run(std::chrono::hours(1),
              [holder = std::make_shared<Holder>(errands, std::move(held))] {});
  errands.Stop();
  EXPECT_TRUE(watch.expired());
}

TEST(Errands, ReleaseOnlyWhatMayGo) {
  Errands errands;
  auto object = std::make_shared<int>(1);
  const std::weak_ptr<int> watch = object;
  int asked = 0;
  bool lived_until_it_might_go = false;
  errands.Announce();
  errands.Release(std::move(object), [&] {
    if (++asked < 3) return false;
    lived_until_it_might_go = !watch.expired();
    errands.Dispose(nullptr);  // what Stop waits for
    return true;
  });
  errands.Stop();
  EXPECT_EQ(asked, 3);
  EXPECT_TRUE(lived_until_it_might_go);
  EXPECT_TRUE(watch.expired());
}

}  // namespace
}  // namespace ringserve
