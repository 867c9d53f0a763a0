#include "client/ringctl/names.h"

#include <google/protobuf/descriptor.h>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"

namespace ringserve {
namespace {

using google::protobuf::EnumDescriptor;
using google::protobuf::EnumValueDescriptor;

// Without what all values of an enum begin with: UNSPECIFIED is one of them.
std::string ShortName(const EnumValueDescriptor& value) {
  const std::string& unspecified = value.type()->FindValueByNumber(0)->name();
  const size_t prefix = unspecified.size() - std::string("UNSPECIFIED").size();
  return absl::AsciiStrToLower(absl::StrReplaceAll(value.name().substr(prefix), {{"_", "-"}}));
}

std::string NameOfNumber(const EnumDescriptor& type, int number) {
  const EnumValueDescriptor* value = type.FindValueByNumber(number);
  return value != nullptr ? ShortName(*value) : absl::StrCat("value ", number);
}

std::vector<std::string> NamesIn(const EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) {
    if (type.value(i)->number() != 0) names.push_back(ShortName(*type.value(i)));
  }
  return names;
}

template <typename Enum>
std::optional<Enum> ValueNamed(const EnumDescriptor& type, const std::string& name) {
  for (int i = 0; i < type.value_count(); ++i) {
    if (type.value(i)->number() != 0 && ShortName(*type.value(i)) == name)
      return static_cast<Enum>(type.value(i)->number());
  }
  return std::nullopt;
}

}  // namespace

std::string NameOf(v1::Balancer balancer) {
  return NameOfNumber(*v1::Balancer_descriptor(), balancer);
}
std::string NameOf(v1::RotateMethod rotate) {
  return NameOfNumber(*v1::RotateMethod_descriptor(), rotate);
}
std::string NameOf(v1::DType dtype) { return NameOfNumber(*v1::DType_descriptor(), dtype); }

std::vector<std::string> BalancerNames() { return NamesIn(*v1::Balancer_descriptor()); }
std::vector<std::string> RotateMethodNames() { return NamesIn(*v1::RotateMethod_descriptor()); }
std::vector<std::string> DTypeNames() { return NamesIn(*v1::DType_descriptor()); }
std::vector<std::string> TensorLayoutNames() { return NamesIn(*v1::TensorLayout_descriptor()); }

std::optional<v1::Balancer> BalancerNamed(const std::string& name) {
  return ValueNamed<v1::Balancer>(*v1::Balancer_descriptor(), name);
}
std::optional<v1::RotateMethod> RotateMethodNamed(const std::string& name) {
  return ValueNamed<v1::RotateMethod>(*v1::RotateMethod_descriptor(), name);
}
std::optional<v1::DType> DTypeNamed(const std::string& name) {
  return ValueNamed<v1::DType>(*v1::DType_descriptor(), name);
}
std::optional<v1::TensorLayout> TensorLayoutNamed(const std::string& name) {
  return ValueNamed<v1::TensorLayout>(*v1::TensorLayout_descriptor(), name);
}

}  // namespace ringserve
