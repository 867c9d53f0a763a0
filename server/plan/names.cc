#include "server/plan/names.h"

#include "absl/strings/str_cat.h"

namespace ringserve {

std::string BalancerName(v1::Balancer balancer) {
  switch (balancer) {
    case v1::BALANCER_UNSPECIFIED:
    case v1::BALANCER_AUTO:
      return "auto";
    case v1::BALANCER_CONTIGUOUS:
      return "contiguous";
    case v1::BALANCER_HEAD_TAIL:
      return "head-tail";
    case v1::BALANCER_PER_DOCUMENT:
      return "per-document";
    case v1::BALANCER_PTRR:
      return "ptrr";
    default:
      return absl::StrCat("balancer ", static_cast<int>(balancer));
  }
}

std::string RotateName(v1::RotateMethod rotate) {
  switch (rotate) {
    case v1::ROTATE_METHOD_UNSPECIFIED:
    case v1::ROTATE_METHOD_AUTO:
      return "auto";
    case v1::ROTATE_METHOD_ALL_TO_ALL:
      return "all-to-all";
    case v1::ROTATE_METHOD_ALL_GATHER:
      return "all-gather";
    case v1::ROTATE_METHOD_PASS_Q:
      return "pass-q";
    default:
      return absl::StrCat("rotate method ", static_cast<int>(rotate));
  }
}

}  // namespace ringserve
