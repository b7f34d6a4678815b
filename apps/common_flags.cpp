#include <charconv>
#include <limits>
#include <map>

#include "command.h"

namespace glimpse {
namespace {

const std::map<std::string, Arithmetic> kArithmetics = {{"auto", Arithmetic::automatic},
                                                        {"exact", Arithmetic::exact},
                                                        {"fast", Arithmetic::fast},
                                                        {"w8a8", Arithmetic::w8a8}};
const std::map<std::string, KvFormat> kKvFormats = {{"auto", KvFormat::automatic},
                                                    {"f32", KvFormat::f32},
                                                    {"bf16", KvFormat::bf16},
                                                    {"fp8", KvFormat::fp8}};
const std::map<std::string, VisionResidency> kVisionResidencies = {
    {"auto", VisionResidency::automatic},
    {"resident", VisionResidency::resident},
    {"on-demand", VisionResidency::on_demand}};

// Memory is counted in powers of two, with or without the "i".
const std::map<std::string, double> kSizeUnits = {
    {"", 1},        {"b", 1},        {"k", 0x1p10}, {"kb", 0x1p10}, {"kib", 0x1p10}, {"m", 0x1p20},
    {"mb", 0x1p20}, {"mib", 0x1p20}, {"g", 0x1p30}, {"gb", 0x1p30}, {"gib", 0x1p30}};

void set_device(EngineOptions& engine, const std::string& text) {
  if (text == "auto") {
    engine.device = DeviceChoice::automatic;
  } else if (text == "cpu") {
    engine.device = DeviceChoice::cpu;
  } else if (text == "cuda") {
    engine.device = DeviceChoice::cuda;
  } else if (text.rfind("cuda:", 0) == 0 && text.size() > 5 && text.size() <= 8 &&
             text.find_first_not_of("0123456789", 5) == std::string::npos) {
    engine.device = DeviceChoice::cuda;
    engine.cuda_device = std::stoi(text.substr(5));
  } else {
    throw CLI::ValidationError("--device", "'" + text + "' is not auto, cpu, cuda or cuda:N");
  }
}

template <typename T>
std::string names(const std::map<std::string, T>& choices) {
  std::string list;
  for (const auto& [name, value] : choices) list += (list.empty() ? "" : ", ") + name;
  return list;
}

// Adds options of one group of the table.
class FlagGroup {
 public:
  FlagGroup(CLI::App& command, std::string name) : command_(command), name_(std::move(name)) {}

  template <typename T>
  CLI::Option* value(const std::string& flag, T& target, const std::string& help) {
    return command_.add_option(flag, target, help)->group(name_);
  }
  template <typename T>
  void choice(const std::string& flag, T& target, const std::map<std::string, T>& choices,
              const std::string& help) {
    const auto choose = [flag, &target, &choices](const std::string& text) {
      const auto found = choices.find(text);
      if (found == choices.end()) {
        throw CLI::ValidationError(flag,
                                   fmt::format("'{}' is not one of {}", text, names(choices)));
      }
      target = found->second;
    };
    command_.add_option_function<std::string>(flag, choose, help)->group(name_);
  }
  void toggle(const std::string& flag, bool& target, const std::string& help) {
    command_.add_flag(flag, target, help)->group(name_);
  }

 private:
  CLI::App& command_;
  std::string name_;
};

void add_model_flags(CLI::App& command, EngineOptions& engine) {
  FlagGroup group(command, "Model and machine");
  group.value("--model", engine.model,
              "checkpoint directory, or a repo id in the Hugging Face cache (default: the bundled "
              "demo)");
  command
      .add_option_function<std::string>(
          "--device", [&engine](const std::string& text) { set_device(engine, text); },
          "auto, cpu, cuda or cuda:N (default: auto)")
      ->group("Model and machine");
  group.value("--threads", engine.threads, "CPU threads (default: one per core)")
      ->check(between(1, 1024));
  add_memory_flags(command, engine);
}

}  // namespace

CLI::Validator size_in_bytes() {
  return {[](std::string& text) -> std::string {
            double number = 0;
            const auto [end, error] =
                std::from_chars(text.data(), text.data() + text.size(), number);
            const std::string unit = text.substr(static_cast<size_t>(end - text.data()));
            const auto found = kSizeUnits.find(CLI::detail::to_lower(unit));
            const double bytes = found == kSizeUnits.end() ? 0 : number * found->second;
            if (error != std::errc() || !(bytes >= 1 && bytes < 0x1p60)) {
              return fmt::format("'{}' is not a size such as 6.5GiB or 700MiB", text);
            }
            text = std::to_string(static_cast<int64_t>(bytes));
            return {};
          },
          "SIZE"};
}

void add_memory_flags(CLI::App& command, EngineOptions& engine) {
  FlagGroup group(command, "Model and machine");
  group.choice("--arithmetic", engine.arithmetic, kArithmetics,
               "exact (F32, as transformers), fast (BF16), w8a8 (fast, FP8 weights times FP8 "
               "activations) or auto: exact on the CPU, fast on CUDA");
  group.value("--context", engine.context, "most tokens of a prompt and its answer")
      ->check(between(int64_t{16}, int64_t{1} << 20));
  group.value("--vram", engine.memory_cap_bytes, "hard cap on device memory, as 6.5GiB")
      ->transform(size_in_bytes());
  group.choice("--kv", engine.kv_format, kKvFormats, "KV cache: auto, f32, bf16 or fp8");
  group.choice("--vision", engine.vision, kVisionResidencies,
               "vision weights on a GPU: auto, resident or on-demand");
  group.toggle("--quantize-fp8", engine.quantize_to_fp8,
               "store BF16 text projections as block FP8 while loading");
  group.value("--min-pixels", engine.min_pixels, "smallest area a picture is scaled to")
      ->check(between(int64_t{1}, kMostPixels));
  group.value("--max-pixels", engine.max_pixels, "largest area a picture is scaled to")
      ->check(between(int64_t{1}, kMostPixels));
}

void add_sampling_flags(CLI::App& command, SamplingOptions& sampling) {
  FlagGroup group(command, "Sampling (default: the checkpoint's generation_config.json)");
  group.value("--max-tokens", sampling.max_tokens, "most tokens of the answer (default: 256)")
      ->check(between(1, 1 << 20));
  group.value("--temperature", sampling.temperature, "0 always takes the most likely token")
      ->check(between(0.0, 100.0));
  group.value("--top-k", sampling.top_k, "keep the k most likely tokens; 0: all")
      ->check(between(0, 1 << 24));
  group.value("--top-p", sampling.top_p, "keep the smallest set of this probability")
      ->check(between(0.0, 1.0));
  group.value("--min-p", sampling.min_p, "drop tokens under this share of the most likely one")
      ->check(between(0.0, 1.0));
  group.value("--repetition-penalty", sampling.repetition_penalty, "prompt and answer; 1: off")
      ->check(between(0.01, 10.0));
  group.value("--presence-penalty", sampling.presence_penalty, "over the answer; 0: off")
      ->check(between(-2.0, 2.0));
  group.value("--frequency-penalty", sampling.frequency_penalty, "over the answer; 0: off")
      ->check(between(-2.0, 2.0));
  group.value("--seed", sampling.seed, "equal seeds give equal answers")
      ->check(between(uint64_t{0}, std::numeric_limits<uint64_t>::max()));
  group.value("--stop", sampling.stop, "end the answer before this text; may be repeated")
      ->take_all();
  group.toggle("--ignore-eos", sampling.ignore_eos, "go on to --max-tokens");
  group.value("--logprobs", sampling.logprobs, "with --json: log-probabilities, N alternatives")
      ->check(between(0, 20));
  group.toggle("!--no-loop-guard", sampling.loop_guard, "let a repeating answer go on");
  group.value("--thinking-budget", sampling.thinking_budget, "most tokens of reasoning")
      ->check(between(0, 1 << 20));
}

void add_output_flags(CLI::App& command, CommonFlags& flags) {
  FlagGroup group(command, "Input and output");
  group.value("--system", flags.system, "system message");
  group.toggle("--stats", flags.stats, "times, tokens and memory on standard error");
  group.toggle("--json", flags.json, "one JSON object per answer on standard output");
  group.toggle("--quiet", flags.quiet, "no progress and no notices");
}

void add_common_flags(CLI::App& command, CommonFlags& flags) {
  add_model_flags(command, flags.engine);
  add_sampling_flags(command, flags.sampling);
  add_output_flags(command, flags);
}

}  // namespace glimpse
