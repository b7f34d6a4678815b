// glimpse bench: first token, vision, prefill and decode at given sizes, each several times after a
// warm-up, through the same engine that answers requests. Median and spread, as a table or JSON.
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <ctime>
#include <fstream>
#include <future>
#include <map>
#include <mutex>
#include <sstream>

#include <fmt/format.h>

#include "command.h"

namespace glimpse {
namespace {

struct BenchCommand {
  CommonFlags flags;
  std::vector<std::string> pictures = {"640x480", "1024x768"};
  std::vector<int> prefill = {128, 512};
  std::vector<int> decode = {64};
  std::vector<int> batch = {1};
  int prompt = 32;
  int repeat = 5;
  bool steps = false;
};

// The value below which `share` of the others are.
double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
}

struct Measurement {
  std::string name;
  std::string unit;  ///< what the rate counts per second
  int64_t count = 0;
  std::vector<double> milliseconds;
  std::map<std::string, std::vector<double>> parts;  ///< of these milliseconds

  [[nodiscard]] double at(double share) const { return quantile(milliseconds, share); }
  [[nodiscard]] double rate() const { return static_cast<double>(count) * 1000.0 / at(0.5); }
};

// Since the process was started: its loading and linking count. To 10 ms, as the kernel tells.
double milliseconds_of_process() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  std::istringstream fields(line.substr(line.rfind(')') + 1));
  std::string skipped;
  for (int i = 0; i < 19; ++i) fields >> skipped;
  double start_ticks = 0;
  fields >> start_ticks;
  timespec now{};
  clock_gettime(CLOCK_BOOTTIME, &now);
  const double start_ms = start_ticks * 1e3 / static_cast<double>(sysconf(_SC_CLK_TCK));
  return static_cast<double>(now.tv_sec) * 1e3 + static_cast<double>(now.tv_nsec) / 1e6 - start_ms;
}

void put(std::vector<std::byte>& bytes, uint32_t value, int count) {
  for (int i = 0; i < count; ++i) {
    bytes.push_back(static_cast<std::byte>((value >> (8 * i)) & 0xFFU));
  }
}

// A BMP file with a pattern that depends on `seed`, so that no cache answers for the model.
Picture make_picture(int width, int height, uint32_t seed) {
  std::vector<std::byte> file;
  const auto row_bytes = static_cast<uint32_t>((width * 3 + 3) / 4 * 4);
  const uint32_t pixel_bytes = row_bytes * static_cast<uint32_t>(height);
  file.reserve(54 + pixel_bytes);
  put(file, 0x4D42, 2);
  put(file, 54 + pixel_bytes, 4);
  put(file, 0, 4);
  put(file, 54, 4);
  put(file, 40, 4);
  put(file, static_cast<uint32_t>(width), 4);
  put(file, static_cast<uint32_t>(height), 4);
  put(file, 1, 2);
  put(file, 24, 2);
  put(file, 0, 4);
  put(file, pixel_bytes, 4);
  for (int i = 0; i < 4; ++i) put(file, 0, 4);
  uint32_t state = seed * 2654435761U + 1;
  for (uint32_t i = 0; i < pixel_bytes; ++i) {
    state = state * 1664525U + 1013904223U;
    file.push_back(static_cast<std::byte>(state >> 24));
  }
  return {.bytes = std::move(file), .name = "benchmark picture"};
}

// Width and height of "1024x768".
std::pair<int, int> sides_of(const std::string& size) {
  constexpr int kMostSide = 16384;
  int width = 0;
  int height = 0;
  int used = 0;
  const bool is_size = std::sscanf(size.c_str(), "%5dx%5d%n", &width, &height, &used) == 2 &&
                       static_cast<size_t>(used) == size.size();
  if (!is_size || width < 1 || height < 1 || width > kMostSide || height > kMostSide) {
    throw Error(
        ErrorCode::invalid_argument,
        fmt::format("'{}' is not a picture size of 1x1 to {}x{}", size, kMostSide, kMostSide),
        "write it as WIDTHxHEIGHT, for example 1024x768");
  }
  return {width, height};
}

// Tokens that repeat nothing across runs: the prefix cache must not answer for the model.
std::vector<int32_t> make_tokens(int64_t count, int64_t vocabulary, uint32_t seed) {
  std::vector<int32_t> tokens;
  uint32_t state = seed * 2246822519U + 7;
  const auto limit = static_cast<uint32_t>(std::max<int64_t>(vocabulary / 2, 2));
  for (int64_t i = 0; i < count; ++i) {
    state = state * 1664525U + 1013904223U;
    tokens.push_back(static_cast<int32_t>((state >> 8) % limit));
  }
  return tokens;
}

class Bench {
 public:
  Bench(Engine& engine, const BenchCommand& command) : engine_(engine), command_(command) {}

  // A picture and a short question, from the pixels in host memory to the first token there.
  Measurement first_token(const std::string& size) {
    Measurement result{.name = "first token " + size, .unit = "prompt tok/s"};
    measure(result, [&] {
      Request request = picture_request(size);
      const std::vector<int32_t> text =
          make_tokens(kQuestionTokens, engine_.model().vocabulary_size, seed_);
      request.raw_tokens.insert(request.raw_tokens.end(), text.begin(), text.end());
      const Answer answer = engine_.answer(std::move(request));
      if (start_to_first_token_ == 0) start_to_first_token_ = milliseconds_of_process();
      result.count = answer.usage.prompt_tokens;
      const Timings& timings = answer.timings;
      result.parts["queue"].push_back(timings.queue);
      result.parts["decode picture"].push_back(timings.picture_decode);
      result.parts["resize and hash"].push_back(timings.picture_resize);
      result.parts["vision"].push_back(timings.vision);
      result.parts["prefill"].push_back(timings.prefill);
      return timings.first_token;
    });
    return result;
  }

  Measurement vision(const std::string& size) {
    Measurement result{.name = "vision " + size, .unit = "visual tokens/s"};
    measure(result, [&] {
      const Answer answer = engine_.answer(picture_request(size));
      result.count = answer.usage.pictures.at(0).visual_tokens;
      return answer.timings.vision;
    });
    return result;
  }

  /// Milliseconds from the start of the process to the first token of its first picture.
  [[nodiscard]] double start_to_first_token() const { return start_to_first_token_; }

  Measurement prefill(int tokens) {
    Measurement result{.name = fmt::format("prefill {}", tokens), .unit = "tok/s", .count = tokens};
    measure(result, [&] {
      Request request = blank(1);
      request.raw_tokens = make_tokens(tokens, engine_.model().vocabulary_size, ++seed_);
      return engine_.answer(std::move(request)).timings.prefill;
    });
    return result;
  }

  // `batch` sequences side by side; the time is that of the slowest one's decoding. Their prompts
  // are computed before, so that no other sequence's prefill stands between the steps.
  Measurement decode(int tokens, int batch) {
    Measurement result{.name = fmt::format("decode {} x {}", tokens, batch),
                       .unit = "tok/s",
                       .count = int64_t{tokens - 1} * batch};
    measure(result, [&] {
      std::vector<Request> requests;
      for (int i = 0; i < batch; ++i) {
        requests.push_back(blank(1));
        requests.back().raw_tokens =
            make_tokens(command_.prompt, engine_.model().vocabulary_size, ++seed_);
        static_cast<void>(engine_.answer(requests.back()));
        requests.back().sampling.max_tokens = tokens;
      }
      std::vector<std::future<Answer>> answers;
      for (Request& request : requests) {
        answers.push_back(std::async(
            std::launch::async, [this, &request] { return engine_.answer(std::move(request)); }));
      }
      double slowest = 0;
      for (auto& answer : answers) slowest = std::max(slowest, answer.get().timings.decode);
      return slowest;
    });
    return result;
  }

  // How long somebody who is being answered waits for a token when another one's picture comes:
  // the longest gap, and the median one from before the picture.
  std::pair<Measurement, Measurement> steps(const std::string& size) {
    Measurement usual{.name = "decode step", .unit = "tok/s", .count = 1};
    Measurement longest{.name = "longest beside " + size, .unit = "tok/s", .count = 1};
    for (int i = 0; i <= command_.repeat; ++i) {  // the first one warms up
      const Gaps gaps = interrupt(size);
      if (i == 0) continue;
      usual.milliseconds.push_back(gaps.usual);
      longest.milliseconds.push_back(gaps.longest);
    }
    return {usual, longest};
  }

 private:
  static constexpr int64_t kQuestionTokens = 14;
  static constexpr size_t kTokensBefore = 48;

  struct Gaps {
    double usual = 0;
    double longest = 0;
  };

  // When the tokens of an answer came; the engine's thread writes.
  struct Listener {
    std::mutex mutex;
    std::condition_variable has_more;
    std::vector<std::chrono::steady_clock::time_point> times;
    std::promise<void> ended;
  };

  Gaps interrupt(const std::string& size) {
    const auto listener = std::make_shared<Listener>();
    Request endless = blank(static_cast<int>(engine_.model().context) / 2);
    endless.raw_tokens = make_tokens(command_.prompt, engine_.model().vocabulary_size, ++seed_);
    const RequestId id = engine_.submit(std::move(endless), [listener](const Event& event) {
      {
        const std::lock_guard lock(listener->mutex);
        listener->times.insert(listener->times.end(), event.tokens.size(),
                               std::chrono::steady_clock::now());
      }
      listener->has_more.notify_all();
      if (event.kind != Event::Kind::text) listener->ended.set_value();
    });
    {
      std::unique_lock lock(listener->mutex);
      listener->has_more.wait(lock, [&] { return listener->times.size() > kTokensBefore; });
    }
    (void)engine_.answer(picture_request(size));
    engine_.cancel(id);
    listener->ended.get_future().wait();
    std::vector<double> gaps;
    for (size_t i = 1; i < listener->times.size(); ++i) {
      gaps.push_back(
          std::chrono::duration<double, std::milli>(listener->times[i] - listener->times[i - 1])
              .count());
    }
    const auto before = gaps.begin() + static_cast<std::ptrdiff_t>(kTokensBefore);
    return {.usual = quantile({gaps.begin() + 1, before}, 0.5),
            .longest = *std::max_element(before, gaps.end())};
  }

  Request picture_request(const std::string& size) {
    const auto [width, height] = sides_of(size);
    Request request = blank(1);
    request.raw_tokens = {engine_.model().image_token_id};
    request.raw_pictures = {make_picture(width, height, ++seed_)};
    return request;
  }

  [[nodiscard]] Request blank(int max_tokens) const {
    Request request;
    request.sampling.temperature = 0.0F;
    request.sampling.max_tokens = max_tokens;
    request.sampling.ignore_eos = true;
    request.sampling.loop_guard = false;
    return request;
  }

  template <typename Run>
  void measure(Measurement& result, const Run& run) {
    (void)run();  // warm-up
    result.parts.clear();
    for (int i = 0; i < command_.repeat; ++i) result.milliseconds.push_back(run());
  }

  Engine& engine_;
  const BenchCommand& command_;
  uint32_t seed_ = 0;
  double start_to_first_token_ = 0;
};

Json to_json(const Measurement& measurement) {
  Json json = {{"name", measurement.name},        {"median_ms", measurement.at(0.5)},
               {"fastest_ms", measurement.at(0)}, {"slowest_ms", measurement.at(1)},
               {"rate", measurement.rate()},      {"unit", measurement.unit}};
  for (const auto& [name, milliseconds] : measurement.parts) {
    json["parts_ms"][name] = quantile(milliseconds, 0.5);
  }
  return json;
}

void print_row(const Measurement& measurement) {
  fmt::print("{:<20} {:>10.2f} ms {:>10.2f} .. {:<10.2f} {:>10.1f} {}\n", measurement.name,
             measurement.at(0.5), measurement.at(0), measurement.at(1), measurement.rate(),
             measurement.unit);
  for (const auto& [name, milliseconds] : measurement.parts) {
    fmt::print("  {:<18} {:>10.2f} ms\n", name, quantile(milliseconds, 0.5));
  }
  flush_output();
}

int run(BenchCommand& command) {
  for (const std::string& size : command.pictures) static_cast<void>(sides_of(size));
  if (command.flags.engine.max_sequences == 0) {
    command.flags.engine.max_sequences =
        *std::max_element(command.batch.begin(), command.batch.end());
  }
  if (command.steps) {
    command.flags.engine.max_sequences = std::max(command.flags.engine.max_sequences, 2);
  }
  const std::unique_ptr<Engine> engine = load_engine(command.flags);
  Bench bench(*engine, command);
  const ModelInfo& model = engine->model();
  Json rows = Json::array();
  const auto show = [&](const Measurement& measurement) {
    if (command.flags.json) {
      rows.push_back(to_json(measurement));
    } else {
      print_row(measurement);
    }
  };
  if (!command.flags.json) {
    fmt::print("{} ({} weights), {} arithmetic, on {}\n", model.name, model.weight_format,
               model.arithmetic, model.device);
    fmt::print("{:<20} {:>13} {:>24} {:>10}\n", "", "median", "fastest .. slowest", "rate");
  }
  if (model.image_token_id >= 0) {
    for (const std::string& size : command.pictures) {
      show(bench.first_token(size));
      show(bench.vision(size));
      if (!command.steps) continue;
      const auto [usual, longest] = bench.steps(size);
      show(usual);
      show(longest);
    }
  }
  for (const int tokens : command.prefill) show(bench.prefill(tokens));
  for (const int tokens : command.decode) {
    for (const int batch : command.batch) show(bench.decode(tokens, batch));
  }
  if (command.flags.json) {
    const EngineStatus status = engine->status();
    Json memory = Json::array();
    for (const MemoryItem& item : status.memory) {
      memory.push_back({{"name", item.name}, {"bytes", item.bytes}});
    }
    print_json_line({{"model", model.name},
                     {"weights", model.weight_format},
                     {"arithmetic", model.arithmetic},
                     {"device", model.device},
                     {"load_ms", model.load_milliseconds},
                     {"start_to_first_token_ms", bench.start_to_first_token()},
                     {"context", model.context},
                     {"max_pixels", model.max_pixels},
                     {"memory", memory},
                     {"peak_resident_bytes", status.peak_resident_bytes},
                     {"results", rows}});
  }
  return 0;
}

}  // namespace

void add_bench_command(CLI::App& program, int& result) {
  const auto command = std::make_shared<BenchCommand>();
  CLI::App* app = program.add_subcommand(
      "bench", "Measure vision, prefill and decode: median and spread after a warm-up.");
  app->add_option("--pictures", command->pictures, "picture sizes, as 640x480,1024x768")
      ->delimiter(',');
  app->add_option("--prefill", command->prefill, "prompt lengths in tokens, as 128,512")
      ->delimiter(',')
      ->check(between(1, 1 << 20));
  app->add_option("--decode", command->decode, "answer lengths in tokens")
      ->delimiter(',')
      ->check(between(2, 1 << 20));
  app->add_option("--batch", command->batch, "sequences decoded together, as 1,8")
      ->delimiter(',')
      ->check(between(1, 1024));
  app->add_option("--prompt", command->prompt, "tokens before each answer (default: 32)")
      ->check(between(1, 1 << 20));
  app->add_option("--kv-tokens", command->flags.engine.kv_tokens,
                  "tokens the KV cache holds in all (default: the context for each sequence)")
      ->check(between(int64_t{1}, int64_t{1} << 40));
  app->add_option("--repeat", command->repeat, "measurements of each (default: 5)")
      ->check(between(1, 1000));
  app->add_flag("--steps", command->steps,
                "also how long an answer waits for a token while each picture arrives");
  add_common_flags(*app, command->flags);
  app->callback([command, &result] { result = run(*command); });
}

}  // namespace glimpse
