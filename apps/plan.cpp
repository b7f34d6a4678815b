// glimpse plan MODEL: what the model would take of the card, and what fits.
#include <cmath>

#include <fmt/format.h>

#include "command.h"
#include "glimpse/plan.h"

namespace glimpse {
namespace {

struct PlanCommand {
  EngineOptions engine;
  int64_t gpu_bytes = 0;
  bool json = false;
};

constexpr int kNameWidth = 28;

int64_t mebibytes(int64_t bytes) {
  return (bytes + (1 << 19)) >> 20;
}

std::string name_of(MemoryForecast::Verdict verdict) {
  switch (verdict) {
    case MemoryForecast::Verdict::fits:
      return "FITS";
    case MemoryForecast::Verdict::tight:
      return "TIGHT";
    case MemoryForecast::Verdict::does_not_fit:
      break;
  }
  return "DOES NOT FIT";
}

std::string meaning_of(const MemoryForecast& forecast) {
  switch (forecast.verdict) {
    case MemoryForecast::Verdict::fits:
      return "as asked, with room for the desktop to grow";
    case MemoryForecast::Verdict::tight:
      return fmt::format("it runs: after automatic choices, or with less than {} MiB left free",
                         mebibytes(MemoryForecast::kTightBytes));
    case MemoryForecast::Verdict::does_not_fit:
      break;
  }
  return "not even after every automatic choice";
}

void print_line(std::string_view name, int64_t bytes) {
  fmt::print("  {:<{}} {:>7} MiB\n", name, kNameWidth, mebibytes(bytes));
}

// A 4:3 picture of an area, as people think of pictures.
std::string sides_of(int64_t pixels) {
  if (pixels == 0) return "none";
  const double height = std::sqrt(static_cast<double>(pixels) * 3 / 4);
  return fmt::format("{} pixels, as {:.0f}x{:.0f}", pixels, height * 4 / 3, height);
}

void print_table(const MemoryForecast& forecast) {
  fmt::print("{} ({}) on {}\n", forecast.model, forecast.weight_format, forecast.card);
  for (const MemoryItem& item : forecast.items) print_line(item.name, item.bytes);
  print_line("in all", forecast.total_bytes);
  print_line("free", forecast.free_bytes);
  print_line("taken by the desktop", forecast.desktop_bytes);
  if (forecast.cap_bytes > 0) print_line("cap (--vram)", forecast.cap_bytes);
  for (const MemoryItem& item : forecast.host_items) {
    print_line("host: " + item.name, item.bytes);
  }
  fmt::print("planned: context {}, {} at once, KV in {}, vision weights {}", forecast.context,
             forecast.max_sequences, forecast.kv_format,
             forecast.vision_on_demand ? "on demand" : "resident");
  if (forecast.max_pixels > 0) fmt::print(", pictures up to {}", sides_of(forecast.max_pixels));
  fmt::print("\n{}: {}\n", name_of(forecast.verdict), meaning_of(forecast));
  fmt::print("what fits, each with the rest as planned:\n");
  if (forecast.max_pixels > 0) {
    fmt::print("  largest picture              {}\n", sides_of(forecast.largest_picture));
  }
  fmt::print("  longest context              {} tokens\n", forecast.longest_context);
  fmt::print("  most sequences at once       {}\n", forecast.most_sequences);
  for (const std::string& choice : forecast.choices) fmt::print("chosen: {}\n", choice);
  for (const std::string& sentence : forecast.advice) fmt::print("to lower: {}\n", sentence);
}

Json to_json(const MemoryForecast& forecast) {
  Json items = Json::array();
  for (const MemoryItem& item : forecast.items) {
    items.push_back({{"name", item.name}, {"bytes", item.bytes}});
  }
  std::vector<std::string> advice = forecast.choices;
  advice.insert(advice.end(), forecast.advice.begin(), forecast.advice.end());
  return {
      {"verdict", name_of(forecast.verdict)},        {"items", items},
      {"total_bytes", forecast.total_bytes},         {"free_bytes", forecast.free_bytes},
      {"largest_picture", forecast.largest_picture}, {"longest_context", forecast.longest_context},
      {"most_sequences", forecast.most_sequences},   {"advice", advice}};
}

int run(const PlanCommand& command) {
  const MemoryForecast forecast = forecast_memory(command.engine, command.gpu_bytes);
  if (command.json) {
    print_json_line(to_json(forecast));
  } else {
    print_table(forecast);
  }
  return 0;
}

}  // namespace

void add_plan_command(CLI::App& program, int& result) {
  const auto command = std::make_shared<PlanCommand>();
  CLI::App* app = program.add_subcommand(
      "plan", "Show what a model takes of a GPU's memory and what fits; loads nothing.");
  app->add_option("MODEL", command->engine.model,
                  "checkpoint directory or repo id (default: the bundled demo)");
  add_memory_flags(*app, command->engine);
  app->add_option("--sequences", command->engine.max_sequences, "sequences computed together")
      ->check(between(1, 1024));
  app->add_option("--gpu", command->gpu_bytes,
                  "size of the card, as 8GiB (default: this machine's card, else 8GiB)")
      ->transform(size_in_bytes());
  app->add_flag("--json", command->json, "one JSON object");
  app->callback([command, &result] { result = run(*command); });
}

}  // namespace glimpse
