#include "server/membership.h"

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <random>
#include <set>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "proto/protocol.h"
#include "tests/server/make_hello.h"

namespace ringserve {
namespace {

using std::chrono::milliseconds;
using test::MakeHello;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr Membership::Time kStart{};

MembershipOptions Options() {
  return {.incarnation = "i",
          .heartbeat_interval = milliseconds(200),
          .lost_after = milliseconds(1'000),
          .build_deadline = milliseconds(3'000)};
}

std::string Print(const v1::CoordinatorMessage& message) {
  if (message.has_welcome()) {
    return absl::StrCat("welcome ", message.welcome().worker_id(), " heartbeat ",
                        message.welcome().heartbeat_interval_ms(), " lost after ",
                        message.welcome().lost_after_ms());
  }
  if (message.has_epoch()) {
    std::vector<std::string> members;
    for (const v1::Member& member : message.epoch().members()) {
      members.push_back(absl::StrCat(member.worker_id(), "@", member.address()));
    }
    return absl::StrCat("epoch ", message.epoch().id(), " [", absl::StrJoin(members, " "),
                        "] index ", message.epoch().index());
  }
  if (message.has_rendezvous()) {
    return absl::StrCat("meet ", message.rendezvous().epoch(), " by ",
                        message.rendezvous().token().size(), " bytes");
  }
  if (message.recall_job() != 0) return absl::StrCat("recall ", message.recall_job());
  return message.alive() ? "alive" : absl::StrCat("fence ", message.fence_epoch());
}

std::string Print(const Membership::Action& action) {
  if (const auto* send = std::get_if<Membership::Send>(&action)) {
    return absl::StrCat("to ", send->member, ": ", Print(send->message));
  }
  if (const auto* end = std::get_if<Membership::End>(&action)) {
    return absl::StrCat("end ", end->member, ": ", end->status.ToString());
  }
  if (const auto* gone = std::get_if<Membership::WorkerGone>(&action)) {
    return absl::StrCat("gone ", gone->worker_id, ": ", gone->reason);
  }
  if (const auto* over = std::get_if<Membership::EpochOver>(&action)) {
    return absl::StrCat("over ", over->epoch, ": ", over->reason);
  }
  if (const auto* released = std::get_if<Membership::Released>(&action)) {
    return absl::StrCat("released ", released->worker_id, " job ", released->job);
  }
  const auto& note = std::get<Membership::Note>(action);
  return absl::StrCat(note.warning ? "warn: " : "note: ", note.text);
}

// One line of a transcript, applied.
class Play {
 public:
  std::string Do(const std::string& line) {
    const std::vector<std::string> words = absl::StrSplit(line, ' ');
    const std::string& verb = words[0];
    if (verb == "tick") {
      std::string printed;
      const int times = words.size() > 2 ? Number(words[2]) : 1;
      for (int i = 0; i < times; ++i) {
        now_ += milliseconds(Number(words[1]));
        absl::StrAppend(&printed, Print(membership_.Tick(now_)));
      }
      return printed;
    }
    if (verb == "join") {
      v1::Hello hello = MakeHello(words[2]);
      if (words.size() > 3) hello.set_device(words[3]);
      return Print(membership_.Join(Number(words[1]), hello));
    }
    if (verb == "ended") return Print(membership_.CallEnded(Number(words[1])));
    if (verb == "stalled") return Print(membership_.BreakEpoch(words[1], "no progress"));
    if (verb == "drained") return Print(membership_.Drained(words[1]));
    if (verb == "idle") return Print(membership_.Idle(words[1]));
    if (verb == "end-all") return Print(membership_.EndAll(absl::UnavailableError("shut down")));
    if (verb == "recall" || verb == "suspect") {
      return Print(membership_.Recall(words[1], Number(words[2]), verb == "suspect"));
    }
    if (verb == "bind") return Bind({words.begin() + 1, words.end()});
    if (verb == "state") return State();
    v1::WorkerMessage message;
    if (verb == "heartbeat") message.mutable_heartbeat()->set_job(7);
    if (verb == "hello") *message.mutable_hello() = MakeHello("again:1");
    if (verb == "ready") message.set_epoch_ready(words[2]);
    if (verb == "broken") message.set_epoch_broken(words[2]);
    if (verb == "meet") {
      message.mutable_rendezvous()->set_epoch(words[2]);
      message.mutable_rendezvous()->set_token(std::string(Number(words[3]), 'x'));
    }
    if (verb == "leaving") message.set_leaving(true);
    if (verb == "holds" || verb == "free") {
      message.mutable_recalled()->set_job(Number(words[2]));
      message.mutable_recalled()->set_held(verb == "holds");
    }
    return Print(membership_.Receive(Number(words[1]), message));
  }

 private:
  static int Number(const std::string& word) {
    int number = 0;
    EXPECT_TRUE(absl::SimpleAtoi(word, &number)) << word;
    return number;
  }

  static std::string Print(const Membership::Actions& actions) {
    std::string printed;
    for (const Membership::Action& action : actions) {
      absl::StrAppend(&printed, ringserve::Print(action), "\n");
    }
    return printed;
  }

  std::string Bind(const std::vector<std::string>& workers) {
    const std::optional<v1::Start> start = membership_.Bind(workers);
    if (start.has_value()) {
      return absl::StrCat(start->epoch(), " [", absl::StrJoin(start->members(), " "), "]\n");
    }
    return membership_.MayBind(workers) ? "not yet\n" : "never\n";
  }

  std::string State() {
    std::string printed;
    for (const Membership::Member& member : membership_.members()) {
      absl::StrAppend(&printed, member.worker_id, " silent ", member.silence.count(),
                      member.built ? " built" : "", member.leaving ? " leaving" : "",
                      member.suspected_for.empty() ? "" : " suspect", "\n");
    }
    absl::StrAppend(&printed, "current '", membership_.current_epoch(), "' draining [",
                    absl::StrJoin(membership_.draining(), " "), "] parting [",
                    absl::StrJoin(membership_.parting(), " "), "]\n");
    return printed;
  }

  Membership membership_{Options()};
  Membership::Time now_ = kStart;
};

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// The transcript with what really comes out. "> event" lines are kept, as are comments and blank
// lines; everything else is output.
std::string Replay(const std::string& transcript) {
  Play play;
  std::string replayed;
  for (const std::string& line : std::vector<std::string>(absl::StrSplit(transcript, '\n'))) {
    const bool event = line.rfind("> ", 0) == 0;
    if (event || line.empty() || line[0] == '#') absl::StrAppend(&replayed, line, "\n");
    if (event) absl::StrAppend(&replayed, play.Do(line.substr(2)));
  }
  replayed.pop_back();  // of the end of the file
  return replayed;
}

class Transcript : public ::testing::TestWithParam<std::string> {};

// RINGSERVE_UPDATE_TRANSCRIPTS=1 writes what comes out: read the difference.
TEST_P(Transcript, IsWhatComesOut) {
  const std::filesystem::path path =
      std::filesystem::path(RINGSERVE_TEST_DATA) / "testdata/membership" / (GetParam() + ".txt");
  const std::string transcript = ReadFile(path);
  ASSERT_THAT(transcript, HasSubstr("> ")) << path;
  const std::string replayed = Replay(transcript);
  if (std::getenv("RINGSERVE_UPDATE_TRANSCRIPTS") != nullptr) std::ofstream(path) << replayed;
  EXPECT_EQ(replayed, transcript);
}

INSTANTIATE_TEST_SUITE_P(Membership, Transcript,
                         ::testing::Values("join", "loss", "silence", "broken", "leaving",
                                           "newcomer", "strangers", "recall", "rendezvous", "kinds",
                                           "end_all"),
                         [](const auto& info) { return info.param; });

absl::Status Refusal(const v1::Hello& hello) {
  Membership membership(Options());
  const Membership::Actions actions = membership.Join(1, hello);
  const auto* end = std::get_if<Membership::End>(&actions.back());
  EXPECT_EQ(membership.members().empty(), end != nullptr);
  return end == nullptr ? absl::OkStatus() : end->status;
}

TEST(Membership, RefusesAnotherProtocolNamingBothVersions) {
  v1::Hello hello = MakeHello("a:1");
  hello.set_protocol_version(7);
  const absl::Status status = Refusal(hello);
  EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(status.message()), HasSubstr("is 7"));
  EXPECT_THAT(std::string(status.message()), HasSubstr(absl::StrCat("version ", kProtocolVersion)));
}

TEST(Membership, RefusesAnotherKindOfDeviceNamingBoth) {
  Membership membership(Options());
  membership.Join(1, MakeHello("a:1"));
  v1::Hello hello = MakeHello("b:1");
  hello.set_device("cuda:0");
  const Membership::Actions actions = membership.Join(2, hello);
  const auto* end = std::get_if<Membership::End>(&actions.back());
  ASSERT_NE(end, nullptr);
  EXPECT_EQ(end->member, 2u);
  EXPECT_EQ(end->status.code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(end->status.message()),
              AllOf(HasSubstr("hello.device is cuda:0"), HasSubstr("on cpu (w1)")));
  EXPECT_EQ(membership.members().size(), 1u);
}

TEST(Membership, RefusesAWrongHelloNamingTheField) {
  const std::pair<const char*, std::function<void(v1::Hello&)>> faults[] = {
      {"hello.address", [](v1::Hello& hello) { hello.clear_address(); }},
      {"hello.address", [](v1::Hello& hello) { hello.set_address("host"); }},
      {"hello.address", [](v1::Hello& hello) { hello.set_address(":80"); }},
      {"hello.address", [](v1::Hello& hello) { hello.set_address("host:0"); }},
      {"hello.address", [](v1::Hello& hello) { hello.set_address("host:65536"); }},
      {"hello.address", [](v1::Hello& hello) { hello.set_address("unix:"); }},
      {"hello.address", [](v1::Hello& hello) { hello.set_address("unix-abstract:"); }},
      {"hello.address", [](v1::Hello& hello) { hello.set_address("a\n:1"); }},
      {"hello.address",
       [](v1::Hello& hello) { hello.set_address(absl::StrCat(std::string(300, 'a'), ":1")); }},
      {"hello.device", [](v1::Hello& hello) { hello.clear_device(); }},
      {"hello.device", [](v1::Hello& hello) { hello.set_device("gpu"); }},
      {"hello.threads", [](v1::Hello& hello) { hello.set_threads(0); }},
      {"hello.memory_bytes", [](v1::Hello& hello) { hello.set_memory_bytes(0); }},
      {"hello.version", [](v1::Hello& hello) { hello.set_version(std::string(257, 'v')); }},
      {"hello.libtorch", [](v1::Hello& hello) { hello.set_libtorch("\x01"); }},
      {"hello.device_name", [](v1::Hello& hello) { hello.set_device_name("\n"); }},
      {"hello.driver", [](v1::Hello& hello) { hello.set_driver(std::string(257, '5')); }},
      {"hello.cuda", [](v1::Hello& hello) { hello.set_cuda("\x7f"); }},
      {"hello.nccl", [](v1::Hello& hello) { hello.set_nccl("\t"); }},
  };
  for (const auto& [field, spoil] : faults) {
    v1::Hello hello = MakeHello("a:1");
    spoil(hello);
    const absl::Status status = Refusal(hello);
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << field;
    EXPECT_THAT(std::string(status.message()), HasSubstr(field));
  }
}

TEST(Membership, TakesUnixSocketsAndBracketedHosts) {
  for (const char* address : {"unix:/run/w.sock", "[::1]:80", "host.example:65535"}) {
    EXPECT_TRUE(Refusal(MakeHello(address)).ok()) << address;
  }
}

// What all workers together know, by what was sent to them; they answer late, in any order, or
// never.
class Soak {
 public:
  explicit Soak(int seed) : random_(seed) {}

  void Run(int events) {
    for (int i = 0; i < events && !::testing::Test::HasFailure(); ++i) {
      Step();
      Check();
    }
    Calm();
  }

 private:
  struct Worker {
    std::string id;
    std::set<std::string> epochs;      // was told to build, not yet to fence
    std::set<std::string> unanswered;  // of these
    bool leaving = false;
  };

  int Pick(int n) { return std::uniform_int_distribution<int>(0, n - 1)(random_); }

  Membership::Id AnyWorker() {
    if (workers_.empty()) return 0;
    return std::next(workers_.begin(), Pick(static_cast<int>(workers_.size())))->first;
  }

  void Step() {
    const Membership::Id id = AnyWorker();
    v1::WorkerMessage message;
    switch (Pick(10)) {
      case 0:
        if (workers_.size() < 6) {
          ++last_;
          Apply(membership_.Join(last_, MakeHello(absl::StrCat("a:", 1 + Pick(9)))));
        }
        return;
      case 1:
        if (Pick(3) == 0) Apply(membership_.CallEnded(id));
        return;
      case 2:
        if (id != 0 && Pick(3) == 0) {
          message.set_leaving(true);
          workers_[id].leaving = true;
          Apply(membership_.Receive(id, message));
        }
        return;
      case 3:
        if (id != 0 && !workers_[id].epochs.empty() && Pick(2) == 0) {
          message.set_epoch_broken(*workers_[id].epochs.begin());
          Apply(membership_.Receive(id, message));
        }
        return;
      case 4:
      case 5: {
        now_ += milliseconds(Pick(20) == 0 ? 5'000 : 100 + Pick(200));
        Apply(membership_.Tick(now_));
        return;
      }
      case 6:
        for (const std::string& epoch : membership_.draining()) {
          if (Pick(2) == 0) Apply(membership_.Drained(epoch));
        }
        for (const std::string& worker : membership_.parting()) {
          if (Pick(2) == 0) Apply(membership_.Idle(worker));
        }
        return;
      case 7:
        message.mutable_heartbeat()->set_job(1);
        for (const auto& [member, worker] : std::map<Membership::Id, Worker>(workers_)) {
          if (Pick(8) != 0) Apply(membership_.Receive(member, message));
        }
        return;
      default:
        Answer(id);
    }
  }

  void Answer(Membership::Id id) {
    if (id == 0 || workers_[id].unanswered.empty()) return;
    v1::WorkerMessage message;
    message.set_epoch_ready(*workers_[id].unanswered.begin());
    workers_[id].unanswered.erase(message.epoch_ready());
    ready_.insert({id, message.epoch_ready()});
    Apply(membership_.Receive(id, message));
  }

  void Apply(const Membership::Actions& actions) {
    for (const Membership::Action& action : actions) {
      if (const auto* send = std::get_if<Membership::Send>(&action)) {
        Take(send->member, send->message);
      } else if (const auto* end = std::get_if<Membership::End>(&action)) {
        ASSERT_EQ(workers_.count(end->member), 1u) << "ended twice, or never began";
        gone_due_.insert(workers_[end->member].id);
        workers_.erase(end->member);
      } else if (const auto* gone = std::get_if<Membership::WorkerGone>(&action)) {
        ASSERT_EQ(gone_due_.erase(gone->worker_id), 1u);
      } else if (const auto* over = std::get_if<Membership::EpochOver>(&action)) {
        ASSERT_EQ(living_.erase(over->epoch), 1u) << "over twice, or never began";
      }
    }
    ASSERT_TRUE(gone_due_.empty());
  }

  void Take(Membership::Id id, const v1::CoordinatorMessage& message) {
    if (message.has_welcome()) {
      ASSERT_TRUE(seen_.insert(message.welcome().worker_id()).second) << "an id came twice";
      ASSERT_EQ(workers_.count(id), 0u);
      workers_[id].id = message.welcome().worker_id();
      return;
    }
    ASSERT_EQ(workers_.count(id), 1u) << "a message to nobody";
    Worker& worker = workers_[id];
    if (message.has_epoch()) {
      const v1::Epoch& epoch = message.epoch();
      ASSERT_EQ(epoch.members(epoch.index()).worker_id(), worker.id);
      ASSERT_TRUE(worker.epochs.insert(epoch.id()).second);
      worker.unanswered.insert(epoch.id());
      if (epoch.index() == 0) {
        ASSERT_TRUE(seen_.insert(epoch.id()).second) << "an epoch's id came twice";
        living_[epoch.id()] = {epoch.members().begin(), epoch.members().end()};
      }
    }
    if (!message.fence_epoch().empty()) {
      ASSERT_EQ(worker.epochs.erase(message.fence_epoch()), 1u) << "fenced what it did not have";
      worker.unanswered.erase(message.fence_epoch());
    }
  }

  void Check() {
    ASSERT_EQ(workers_.size(), membership_.members().size());
    for (const auto& [id, worker] : workers_) {
      for (const std::string& epoch : worker.epochs) ASSERT_EQ(living_.count(epoch), 1u);
    }
    for (const auto& [epoch, members] : living_) {
      for (const v1::Member& member : members) {
        const bool has = std::any_of(workers_.begin(), workers_.end(), [&](const auto& entry) {
          return entry.second.id == member.worker_id() && entry.second.epochs.count(epoch) == 1;
        });
        ASSERT_TRUE(has) << epoch << " lives without " << member.worker_id();
      }
    }
    for (const Membership::Member& member : membership_.members()) {
      ASSERT_LE(member.silence, Options().lost_after);
    }
    CheckBinding();
  }

  // Whatever is bound is ready everywhere.
  void CheckBinding() {
    std::vector<std::string> some;
    for (const Membership::Member& member : membership_.members()) {
      if (Pick(2) == 0) some.push_back(member.worker_id);
    }
    const std::optional<v1::Start> start = membership_.Bind(some);
    if (!start.has_value()) return;
    ASSERT_TRUE(membership_.MayBind(some));
    const std::vector<v1::Member>& members = living_.at(start->epoch());
    ASSERT_EQ(start->members_size(), static_cast<int>(some.size()));
    for (size_t rank = 0; rank < some.size(); ++rank) {
      ASSERT_EQ(members.at(start->members(static_cast<int>(rank))).worker_id(), some[rank]);
    }
    for (const auto& [id, worker] : workers_) {
      if (worker.epochs.count(start->epoch()) == 0) continue;
      ASSERT_EQ(ready_.count({id, start->epoch()}), 1u) << "bound before it was ready";
    }
  }

  // When everybody answers, those who stay have their epoch, and those who leave get away.
  void Calm() {
    for (int round = 0; round < 100 && !::testing::Test::HasFailure(); ++round) {
      for (const auto& [id, worker] : std::map<Membership::Id, Worker>(workers_)) {
        for (size_t i = 0; i < worker.unanswered.size(); ++i) Answer(id);
        v1::WorkerMessage message;
        message.mutable_heartbeat();
        Apply(membership_.Receive(id, message));
      }
      now_ += milliseconds(200);
      Apply(membership_.Tick(now_));
      for (const std::string& epoch : membership_.draining()) Apply(membership_.Drained(epoch));
      for (const std::string& worker : membership_.parting()) Apply(membership_.Idle(worker));
      Check();
    }
    for (const auto& [id, worker] : workers_) {
      EXPECT_FALSE(worker.leaving);
      EXPECT_EQ(worker.epochs, std::set<std::string>{membership_.current_epoch()});
    }
    EXPECT_EQ(living_.size(), workers_.empty() ? 0 : 1);
    if (!workers_.empty()) {
      EXPECT_EQ(living_.begin()->second.size(), workers_.size());
    }
  }

  std::mt19937 random_;
  Membership membership_{Options()};
  Membership::Time now_ = kStart;
  Membership::Id last_ = 0;
  std::map<Membership::Id, Worker> workers_;
  std::map<std::string, std::vector<v1::Member>> living_;
  std::set<std::pair<Membership::Id, std::string>> ready_;
  std::set<std::string> seen_, gone_due_;
};

TEST(Membership, KeepsItsPromisesWhateverHappens) {
  for (int seed = 0; seed < 200; ++seed) {
    SCOPED_TRACE(absl::StrCat("seed ", seed));
    Soak(seed).Run(400);
    if (HasFailure()) return;
  }
}

}  // namespace
}  // namespace ringserve
