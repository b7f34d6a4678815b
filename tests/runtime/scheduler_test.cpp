// The scheduler as pure logic: a driver plays the engine over random arrivals and checks after
// every step what must always hold.
#include <algorithm>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <utility>

#include <gtest/gtest.h>

#include "runtime/scheduler.h"

namespace glimpse {
namespace {

constexpr int64_t kPrefillRows = 48;

struct Job {
  Sequence sequence;
  int64_t answer_tokens = 1;
  int64_t generated = 0;
};

struct World {
  int64_t pages = 64;
  int max_sequences = 4;
  int64_t store_tokens = 200;
  bool launches_ahead = false;
};

// Stands in for the engine: computes nothing, but appends tokens and finishes pictures.
class Driver {
 public:
  explicit Driver(const World& world)
      : world_(world),
        kv_(world.pages),
        pictures_(world.store_tokens),
        scheduler_(kv_, pictures_,
                   {.max_sequences = world.max_sequences,
                    .max_rows = kPrefillRows + world.max_sequences}) {}

  Job& add(int64_t prompt_tokens, int64_t answer_tokens, std::vector<SequencePicture> pictures = {},
           TokenId first_token = -1) {
    auto job = std::make_unique<Job>();
    job->sequence.arrival = next_arrival_++;
    for (int64_t i = 0; i < prompt_tokens; ++i) {
      // Different prompts do not share pages unless a test asks for it.
      job->sequence.tokens.push_back(
          first_token >= 0 ? first_token : static_cast<TokenId>(job->sequence.arrival));
    }
    job->sequence.num_prompt_tokens = prompt_tokens;
    job->sequence.pictures = std::move(pictures);
    job->answer_tokens = answer_tokens;
    scheduler_.add(job->sequence);
    jobs_.push_back(std::move(job));
    return *jobs_.back();
  }

  StepPlan step(int64_t prefill_rows = kPrefillRows) {
    StepPlan plan = ahead_ ? *std::exchange(ahead_, std::nullopt) : StepPlan{};
    std::erase_if(plan.ranges, [&](const TokenRange& range) {
      return finished_.contains(range.sequence->arrival);
    });
    if (plan.ranges.empty()) plan = scheduler_.next_step(prefill_rows);
    check_plan(plan, prefill_rows);
    if (world_.launches_ahead) ahead_ = scheduler_.plan_ahead(plan);
    if (ahead_) ++num_ahead_;
    for (const PictureOf& picture : plan.wanted_pixels) {
      picture.get().has_pixels = true;
      picture.get().pixels_wanted = false;
    }
    if (plan.begin_vision) {
      EXPECT_TRUE(plan.begin_vision->get().has_pixels);
      vision_steps_left_ = 3;
      ++num_vision_passes_;
    }
    if (plan.begin_vision || plan.continue_vision) {
      if (--vision_steps_left_ == 0) scheduler_.finish_vision();
    }
    scheduler_.finish_ranges(plan.ranges);
    for (const TokenRange& range : plan.ranges) {
      served_at_[range.sequence->arrival] = num_steps_;
      const bool samples = range.samples();
      for (SequencePicture& picture : range.sequence->pictures) {
        if (picture.end() <= range.first + range.count) picture.has_pixels = false;
      }
      if (samples) generate(*range.sequence);
    }
    ++num_steps_;
    check_pages();
    return plan;
  }

  bool run_until_idle(int max_steps) {
    for (int i = 0; i < max_steps; ++i) {
      if (scheduler_.is_idle()) return true;
      step();
    }
    return scheduler_.is_idle();
  }

  void cancel(Job& job) {
    scheduler_.remove(job.sequence);
    if (scheduler_.vision_is_orphaned()) scheduler_.abandon_vision();
    finished_.insert(job.sequence.arrival);
  }

  Scheduler& scheduler() { return scheduler_; }
  KvCache& kv() { return kv_; }
  [[nodiscard]] const std::set<uint64_t>& finished() const { return finished_; }
  [[nodiscard]] int num_vision_passes() const { return num_vision_passes_; }
  [[nodiscard]] const std::vector<std::unique_ptr<Job>>& jobs() const { return jobs_; }
  [[nodiscard]] int64_t num_steps() const { return num_steps_; }
  [[nodiscard]] int64_t num_ahead() const { return num_ahead_; }

 private:
  void generate(Sequence& sequence) {
    Job& job = **std::find_if(jobs_.begin(), jobs_.end(),
                              [&](const auto& other) { return &other->sequence == &sequence; });
    sequence.tokens.push_back(static_cast<TokenId>(sequence.arrival));
    if (++job.generated < job.answer_tokens) return;
    scheduler_.remove(sequence);
    EXPECT_TRUE(finished_.insert(sequence.arrival).second) << "finished twice";
  }

  void check_plan(const StepPlan& plan, int64_t prefill_rows) {
    std::set<const Sequence*> seen;
    int64_t chunk_rows = 0;
    for (size_t i = 0; i < plan.ranges.size(); ++i) {
      const TokenRange& range = plan.ranges[i];
      const Sequence& sequence = *range.sequence;
      EXPECT_TRUE(seen.insert(&sequence).second) << "a sequence stands twice in a step";
      EXPECT_GE(sequence.line, 0) << "a preempted sequence stands in the step";
      EXPECT_EQ(range.first, sequence.num_computed);
      EXPECT_GT(range.count, 0);
      EXPECT_LE(range.first + range.count,
                static_cast<int64_t>(sequence.pages.size()) * kKvPageTokens);
      const bool decodes = static_cast<int64_t>(i) < plan.num_decode_rows;
      if (decodes) {
        EXPECT_EQ(range.count, 1);
      } else {
        chunk_rows += range.count;
      }
      for (const SequencePicture& picture : sequence.pictures) {
        const bool meets = picture.first < range.first + range.count && picture.end() > range.first;
        if (meets) {
          EXPECT_TRUE(picture.entry != nullptr && picture.entry->is_ready);
        }
      }
    }
    EXPECT_LE(chunk_rows, prefill_rows);
    if (plan.begin_vision || plan.continue_vision) {
      EXPECT_EQ(chunk_rows, 0) << "a prefill chunk would overwrite the vision tower's memory";
    }
    EXPECT_LE(scheduler_.running().size(), static_cast<size_t>(world_.max_sequences));
    std::set<int> lines;
    for (const Sequence* sequence : scheduler_.running()) {
      EXPECT_TRUE(lines.insert(sequence->line).second) << "two sequences share a line";
    }
    EXPECT_TRUE(!plan.empty() || scheduler_.is_idle() || !plan.wanted_pixels.empty())
        << "nothing moves";
  }

  // Every page in use is counted by its users, and pages that are written have one.
  void check_pages() {
    std::map<PageId, int> users;
    for (const Sequence* sequence : scheduler_.running()) {
      for (const PageId page : sequence->pages) ++users[page];
    }
    for (const auto& [page, count] : users) EXPECT_EQ(kv_.references(page), count);
    EXPECT_EQ(kv_.num_referenced(), static_cast<int64_t>(users.size()));
  }

  World world_;
  KvCache kv_;
  PictureCache pictures_;
  Scheduler scheduler_;
  std::vector<std::unique_ptr<Job>> jobs_;
  std::set<uint64_t> finished_;
  std::map<uint64_t, int64_t> served_at_;
  uint64_t next_arrival_ = 1;
  int vision_steps_left_ = 0;
  int num_vision_passes_ = 0;
  int64_t num_steps_ = 0;
  std::optional<StepPlan> ahead_;
  int64_t num_ahead_ = 0;
};

SequencePicture picture_at(int64_t first, int64_t count, int content) {
  SequencePicture picture{.first = first, .count = count, .has_pixels = true};
  picture.content[0] = static_cast<uint8_t>(content);
  picture.content[1] = static_cast<uint8_t>(content >> 8);
  return picture;
}

TEST(Scheduler, ALonePromptIsComputedInEvenChunksAndThenDecoded) {
  Driver driver({});
  driver.add(100, 3);
  EXPECT_EQ(driver.step().num_rows(), 48);
  EXPECT_EQ(driver.step().num_rows(), 32);
  EXPECT_EQ(driver.step().num_rows(), 20);
  EXPECT_EQ(driver.step().num_decode_rows, 1);
  EXPECT_EQ(driver.step().num_decode_rows, 1);
  EXPECT_TRUE(driver.scheduler().is_idle());
}

TEST(Scheduler, DecodingGoesOnBesideALongPrompt) {
  Driver driver({});
  driver.add(10, 20);
  driver.step();
  Job& prompt = driver.add(400, 1);
  for (int i = 0; i < 9; ++i) {  // as many as chunks of 48 rows would be
    EXPECT_FALSE(driver.finished().contains(prompt.sequence.arrival));
    const StepPlan plan = driver.step();
    EXPECT_EQ(plan.num_decode_rows, 1);
    EXPECT_GE(plan.num_rows(), 1 + 16);
  }
  EXPECT_TRUE(driver.finished().contains(prompt.sequence.arrival));
}

TEST(Scheduler, AShortPromptDoesNotWaitForALongOne) {
  Driver driver({});
  driver.add(1500, 1);
  driver.step();
  Job& small = driver.add(20, 1);
  for (int i = 0; i < 3; ++i) driver.step();
  EXPECT_TRUE(driver.finished().contains(small.sequence.arrival));
}

TEST(Scheduler, TheVisionTowerRunsBeforeTheChunkThatNeedsIt) {
  Driver driver({});
  driver.add(60, 1, {picture_at(5, 40, 1)});
  EXPECT_TRUE(driver.step().begin_vision.has_value());
  EXPECT_TRUE(driver.step().continue_vision);
  EXPECT_TRUE(driver.step().continue_vision);
  EXPECT_EQ(driver.step().num_rows(), 32);
}

TEST(Scheduler, TheSecondQuestionAboutAPictureNeedsNoVisionPass) {
  Driver driver({});
  driver.add(60, 1, {picture_at(5, 40, 1)});
  ASSERT_TRUE(driver.run_until_idle(50));
  driver.add(60, 1, {picture_at(6, 40, 1)});
  ASSERT_TRUE(driver.run_until_idle(50));
  EXPECT_EQ(driver.num_vision_passes(), 1);
}

TEST(Scheduler, EqualBeginningsAreComputedOnce) {
  Driver driver({});
  driver.add(100, 1, {}, 5);
  ASSERT_TRUE(driver.run_until_idle(50));
  Job& second = driver.add(100, 1, {}, 5);
  EXPECT_EQ(driver.step().num_rows(), 4);
  EXPECT_EQ(second.sequence.num_matched, 96);
}

TEST(Scheduler, AMatchNeverEndsInsideAPicture) {
  Driver driver({});
  driver.add(100, 1, {picture_at(20, 70, 1)}, 5);  // pages 0 and 1 are full of it, page 2 ends it
  ASSERT_TRUE(driver.run_until_idle(50));
  // The same picture, but the prompt ends inside of what would be page 2: only pages 0, 1 match,
  // and both reach into the picture.
  Job& second = driver.add(93, 1, {picture_at(20, 70, 1)}, 5);
  driver.step();
  EXPECT_EQ(second.sequence.num_matched, 0);
}

TEST(Scheduler, TheWholePromptIsNeverTakenFromTheCache) {
  Driver driver({});
  driver.add(64, 1, {}, 5);
  ASSERT_TRUE(driver.run_until_idle(50));
  Job& second = driver.add(64, 1, {}, 5);
  EXPECT_EQ(driver.step().num_rows(), 32);
  EXPECT_EQ(second.sequence.num_matched, 32);
}

TEST(Scheduler, WhenPagesRunOutTheYoungestIsPreemptedAndFinishesLater) {
  Driver driver({.pages = 6, .max_sequences = 2});
  driver.add(60, 90);   // grows to 5 pages
  driver.add(30, 100);  // grows to 5 pages
  ASSERT_TRUE(driver.run_until_idle(1000));
  EXPECT_GT(driver.scheduler().num_preemptions(), 0);
  EXPECT_EQ(driver.finished().size(), 2U);
  EXPECT_EQ(driver.jobs()[0]->sequence.num_preemptions, 0);
}

TEST(Scheduler, CancellingGivesEverythingBack) {
  Driver driver({});
  Job& job = driver.add(100, 50, {picture_at(10, 60, 1)});
  for (int i = 0; i < 2; ++i) driver.step();  // amid the vision pass
  driver.cancel(job);
  EXPECT_TRUE(driver.scheduler().is_idle());
  EXPECT_EQ(driver.kv().num_referenced(), 0);
  driver.add(100, 2, {picture_at(10, 60, 2)});
  EXPECT_TRUE(driver.run_until_idle(50));
}

TEST(Scheduler, PicturesThatTogetherExceedTheStoreAreEncodedOneAfterAnother) {
  Driver driver({.store_tokens = 100});
  driver.add(300, 1, {picture_at(10, 80, 1), picture_at(100, 80, 2), picture_at(200, 80, 3)});
  EXPECT_TRUE(driver.run_until_idle(100));
  EXPECT_EQ(driver.num_vision_passes(), 3);
}

TEST(Scheduler, AStepAheadIsTheNextTokenOfTheSameSequences) {
  Driver driver({.pages = 6, .max_sequences = 2});
  Scheduler& scheduler = driver.scheduler();
  const Job& first = driver.add(30, 9);
  const Job& second = driver.add(60, 9);
  EXPECT_FALSE(scheduler.plan_ahead(scheduler.next_step(kPrefillRows))) << "prompts are computed";
  while (driver.step().num_decode_rows < 2) {
  }
  driver.add(10, 1);  // finds no place
  const StepPlan current = scheduler.next_step(kPrefillRows);
  const std::optional<StepPlan> ahead = scheduler.plan_ahead(current);
  ASSERT_TRUE(ahead.has_value());
  ASSERT_EQ(ahead->ranges.size(), 2U);
  EXPECT_EQ(ahead->num_decode_rows, 2);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(ahead->ranges[i].sequence, current.ranges[i].sequence);
    EXPECT_EQ(ahead->ranges[i].first, current.ranges[i].first + 1);
    EXPECT_EQ(ahead->ranges[i].count, 1);
    EXPECT_TRUE(ahead->ranges[i].samples());
  }
  EXPECT_EQ(ahead->ranges[0].sequence, &first.sequence);
  EXPECT_EQ(ahead->ranges[1].sequence, &second.sequence);
}

TEST(Scheduler, NothingIsPlannedAheadWhereSomebodyMayJoinOrLose) {
  Driver driver({.pages = 3, .max_sequences = 3});
  Scheduler& scheduler = driver.scheduler();
  driver.add(10, 90);
  driver.step();
  const StepPlan current = scheduler.next_step(kPrefillRows);
  EXPECT_TRUE(scheduler.plan_ahead(current));
  Job& other = driver.add(10, 1);
  EXPECT_FALSE(scheduler.plan_ahead(current)) << "somebody waits";
  driver.cancel(other);
  EXPECT_TRUE(scheduler.plan_ahead(current));
  Driver full({.pages = 2, .max_sequences = 2});
  full.add(30, 30);
  full.add(30, 30);
  full.step();
  full.step();
  const StepPlan both = full.scheduler().next_step(kPrefillRows);
  EXPECT_EQ(both.num_decode_rows, 2);
  // Token 32 of the first one is next, and no page is left for it.
  EXPECT_FALSE(full.scheduler().plan_ahead(both));
  EXPECT_EQ(full.scheduler().num_preemptions(), 0);
}

class RandomArrivals : public ::testing::TestWithParam<int> {};

TEST_P(RandomArrivals, NobodyIsLostNobodyStarvesAndPagesAreNeverExceeded) {
  std::mt19937 random(static_cast<uint32_t>(GetParam()));
  const auto pick = [&](int64_t least, int64_t most) {
    return std::uniform_int_distribution<int64_t>(least, most)(random);
  };
  const World world{.pages = pick(9, 60),
                    .max_sequences = static_cast<int>(pick(1, 9)),
                    .store_tokens = pick(100, 300),
                    .launches_ahead = GetParam() % 2 == 0};
  Driver driver(world);
  const int64_t longest = (world.pages - 1) * kKvPageTokens;
  int64_t total_work = 0;
  size_t num_cancelled = 0;
  for (int step = 0; step < 600; ++step) {
    if (step < 400 && pick(0, 3) == 0) {
      const int64_t prompt = pick(1, longest / 2);
      std::vector<SequencePicture> pictures;
      int64_t position = pick(0, 40);
      while (pick(0, 1) == 0) {
        const int64_t count = pick(1, 100);
        if (position + count >= prompt) break;
        pictures.push_back(picture_at(position, count, static_cast<int>(pick(0, 5))));
        position += count + pick(0, 50);
      }
      const int64_t answer = pick(1, longest / 3);
      total_work += prompt + answer + 4 * static_cast<int64_t>(pictures.size());
      driver.add(prompt, answer, std::move(pictures), pick(0, 2) == 0 ? 3 : -1);
    }
    if (pick(0, 40) == 0 && !driver.jobs().empty()) {
      Job& job = *driver.jobs()[static_cast<size_t>(pick(0, std::ssize(driver.jobs()) - 1))];
      if (!driver.finished().contains(job.sequence.arrival)) {
        driver.cancel(job);
        ++num_cancelled;
      }
    }
    driver.step(pick(1, kPrefillRows));
    if (HasFailure()) FAIL() << "seed " << GetParam() << ", step " << step;
  }
  // The oldest always advances, so the rest takes no more steps than there is work.
  EXPECT_TRUE(driver.run_until_idle(static_cast<int>(20 * total_work + 1000)))
      << "seed " << GetParam();
  EXPECT_EQ(driver.finished().size(), driver.jobs().size());
  EXPECT_EQ(driver.kv().num_referenced(), 0);
  EXPECT_EQ(driver.num_ahead() > 0, world.launches_ahead);
}

INSTANTIATE_TEST_SUITE_P(Seeds, RandomArrivals, ::testing::Range(1, 41));

}  // namespace
}  // namespace glimpse
