// DieWithParent and EndAtOnce, with processes that are forked and killed.
#include "proto/process.h"

#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <string>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/support/wait.h"

namespace ringserve {
namespace {

using testing::HasSubstr;

// How DieWithParent answers in a child of this process, with kParentPidVariable at `told`.
absl::StatusCode InAChild(const char* told) {
  const pid_t child = fork();
  if (child == 0) {
    if (told != nullptr) setenv(kParentPidVariable, told, 1);
    _exit(static_cast<int>(DieWithParent().code()));
  }
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  return static_cast<absl::StatusCode>(WEXITSTATUS(status));
}

// A process that starts another, which asks to die with it and then waits for ever. The pipe's
// reading end says when that is so, and sees end of file when both are gone.
struct Family {
  pid_t parent = -1;
  int child_output = -1;

  // In the grandchild, `before` runs first.
  explicit Family(void (*before)() = [] {}) {
    int ends[2];
    EXPECT_EQ(pipe(ends), 0);
    parent = fork();
    if (parent == 0) {
      close(ends[0]);
      const std::string self = std::to_string(getpid());
      if (fork() == 0) {
        before();
        setenv(kParentPidVariable, self.c_str(), 1);
        const char answer = DieWithParent().ok() ? 'y' : 'n';
        if (write(ends[1], &answer, 1) != 1 || answer == 'n') _exit(1);
      }
      for (;;) pause();
    }
    close(ends[1]);
    child_output = ends[0];
  }
  ~Family() {
    kill(parent, SIGKILL);
    waitpid(parent, nullptr, 0);
    close(child_output);
  }

  char Answer() const {
    char answer = '-';
    return read(child_output, &answer, 1) == 1 ? answer : '-';
  }
};

TEST(DieWithParent, AcceptsTheParentThatItWasToldOf) {
  EXPECT_EQ(InAChild(std::to_string(getpid()).c_str()), absl::StatusCode::kOk);
  EXPECT_EQ(InAChild(nullptr), absl::StatusCode::kOk);
  EXPECT_EQ(InAChild(""), absl::StatusCode::kOk);
}

TEST(DieWithParent, SaysThatItsParentIsGoneAlready) {
  EXPECT_EQ(InAChild("1"), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(InAChild(std::to_string(getpid() + 1).c_str()), absl::StatusCode::kFailedPrecondition);
}

TEST(DieWithParent, RefusesAVariableThatIsNoProcess) {
  EXPECT_EQ(InAChild("init"), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(InAChild("99999999999"), absl::StatusCode::kFailedPrecondition);
  setenv(kParentPidVariable, "init", 1);
  EXPECT_THAT(DieWithParent().ToString(), HasSubstr("RINGSERVE_PARENT_PID is 'init'"));
  unsetenv(kParentPidVariable);
}

TEST(DieWithParent, EndsWithItsParent) {
  Family family;
  ASSERT_EQ(family.Answer(), 'y');
  kill(family.parent, SIGKILL);
  // The pipe ends when the last of them is gone.
  EXPECT_EQ(family.Answer(), '-');
}

TEST(DieWithParent, EndsThoughItIgnoresEverySignalThatCanBeIgnored) {
  Family family([] {
    for (int number = 1; number < SIGRTMIN; ++number) signal(number, SIG_IGN);
  });
  ASSERT_EQ(family.Answer(), 'y');
  kill(family.parent, SIGKILL);
  EXPECT_EQ(family.Answer(), '-');
}

TEST(DieWithParent, EndsWithTheThreadThatStartedIt) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  pid_t child = -1;
  char answer = '-';
  std::thread starter([&] {
    child = fork();
    if (child == 0) {
      const char ok = DieWithParent().ok() ? 'y' : 'n';
      if (write(ends[1], &ok, 1) != 1) _exit(1);
      for (;;) pause();
    }
    EXPECT_EQ(read(ends[0], &answer, 1), 1);
  });
  starter.join();
  EXPECT_EQ(answer, 'y');
  int status = 0;
  EXPECT_TRUE(test::WaitUntil([&] { return waitpid(child, &status, WNOHANG) == child; }));
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
  close(ends[0]);
  close(ends[1]);
}

// A process that has been asked to end once, and ends at the next signal or after `patience`.
pid_t ForkEnding(std::chrono::milliseconds patience) {
  const sigset_t signals = HoldEndSignals();  // before the fork: none is missed
  const pid_t child = fork();
  if (child == 0) EndAtOnce(signals, patience, 7);
  pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
  return child;
}

int ExitCodeOf(pid_t child) {
  int status = 0;
  EXPECT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  return WEXITSTATUS(status);
}

TEST(EndAtOnce, EndsWithTheSignalsNumber) {
  const pid_t child = ForkEnding(std::chrono::minutes(1));
  kill(child, SIGINT);
  EXPECT_EQ(ExitCodeOf(child), 128 + SIGINT);
}

TEST(EndAtOnce, EndsWhenItsTimeIsUp) {
  EXPECT_EQ(ExitCodeOf(ForkEnding(std::chrono::milliseconds(20))), 7);
}

TEST(EndAtOnce, WaitsOnAfterBeingStoppedAndContinued) {
  const pid_t child = ForkEnding(std::chrono::minutes(1));
  int status = 0;
  kill(child, SIGSTOP);
  ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
  kill(child, SIGCONT);
  ASSERT_EQ(waitpid(child, &status, WCONTINUED), child);
  kill(child, SIGTERM);
  EXPECT_EQ(ExitCodeOf(child), 128 + SIGTERM);
}

}  // namespace
}  // namespace ringserve
