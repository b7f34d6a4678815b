// glimpse serve: the flags of the server around the library's Server.
#include <sys/resource.h>

#include <cstdio>
#include <fstream>

#include <fmt/format.h>

#include "command.h"
#include "glimpse/device_memory.h"
#include "server/server.h"

namespace glimpse {
namespace {

struct ServeCommand {
  CommonFlags flags;
  ServerOptions server;
  std::filesystem::path api_key_file;
  std::string idle_unload;
  int64_t max_model_len = 0;
  double gpu_memory_utilization = 0;
  bool no_access_log = false;
};

constexpr int kUnlimitedTokens = 1 << 20;  // the context ends an answer first

std::vector<std::string> read_api_keys(const std::filesystem::path& path) {
  std::vector<std::string> keys;
  if (path.empty()) return keys;
  std::ifstream file(path);
  if (!file) {
    throw Error(ErrorCode::not_found, fmt::format("{}: the file cannot be read", path.string()),
                "--api-key-file names a file with one key a line");
  }
  for (std::string line; std::getline(file, line);) {
    while (!line.empty() && std::isspace(static_cast<unsigned char>(line.back()))) line.pop_back();
    if (!line.empty() && line.front() != '#') keys.push_back(line);
  }
  if (keys.empty()) {
    throw Error(ErrorCode::invalid_argument, fmt::format("{} has no key", path.string()),
                "write one key a line; lines that begin with # are comments");
  }
  return keys;
}

// "90s", "10m", "1h" or seconds.
std::chrono::milliseconds parse_duration(const std::string& text) {
  if (text.empty()) return std::chrono::milliseconds(0);
  size_t used = 0;
  double value = -1;
  try {
    value = std::stod(text, &used);
  } catch (const std::exception&) {
    used = 0;
  }
  const std::string unit = text.substr(used);
  const double seconds = unit.empty() || unit == "s" ? 1
                         : unit == "m"               ? 60
                         : unit == "h"               ? 3600
                                                     : 0;
  if (!(value >= 0 && value <= 1e6) || seconds == 0) {
    throw Error(ErrorCode::invalid_argument, fmt::format("--idle-unload '{}' is no duration", text),
                "write 90s, 10m or 1h; 0 keeps the model loaded");
  }
  return std::chrono::milliseconds(static_cast<int64_t>(value * seconds * 1000));
}

// A connection is a descriptor; the soft limit is often 1024.
void raise_descriptor_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  static_cast<void>(::setrlimit(RLIMIT_NOFILE, &limit));
}

void check_flags(const ServeCommand& command) {
  const CommonFlags& flags = command.flags;
  if (flags.stats || flags.json || flags.sampling.logprobs >= 0) {
    throw Error(ErrorCode::invalid_argument,
                "--stats, --json and --logprobs have no effect on serve",
                "requests ask for what they want; see /metrics and /v1/status");
  }
  if (command.server.tls_certificate.empty() != command.server.tls_key.empty()) {
    throw Error(ErrorCode::invalid_argument, "--tls-cert and --tls-key go together",
                "give both, or neither");
  }
  if (command.server.max_body_memory < command.server.max_body_bytes) {
    throw Error(ErrorCode::invalid_argument,
                fmt::format("--max-body-memory {} is less than --max-body {}",
                            command.server.max_body_memory, command.server.max_body_bytes),
                "one request of the largest size must fit");
  }
}

// Glimpse's own flags go before vLLM's.
void apply_aliases(const ServeCommand& command, EngineOptions& engine) {
  if (engine.context == 0) engine.context = command.max_model_len;
  if (command.gpu_memory_utilization == 0 || engine.memory_cap_bytes != 0) return;
  const int64_t card = gpu_memory_bytes(engine);
  if (card == 0) {
    throw Error(ErrorCode::invalid_argument, "--gpu-memory-utilization has no effect without a GPU",
                "leave it out, or cap the memory with --vram");
  }
  engine.memory_cap_bytes =
      static_cast<int64_t>(static_cast<double>(card) * command.gpu_memory_utilization);
}

int run(ServeCommand& command) {
  check_flags(command);
  CommonFlags& flags = command.flags;
  apply_aliases(command, flags.engine);
  if (flags.engine.max_sequences == 0) {
    flags.engine.max_sequences = kDefaultSequences;
    flags.engine.fewer_sequences = true;
  }
  command.server.api_keys = read_api_keys(command.api_key_file);
  command.server.sampling = flags.sampling;
  command.server.system = flags.system;
  command.server.access_log = !flags.quiet && !command.no_access_log;
  raise_descriptor_limit();
  EngineHost host([&flags] { return load_engine(flags); }, parse_duration(command.idle_unload));
  Server server(host, command.server);
  const bool is_open = command.server.host != "127.0.0.1" && command.server.host != "::1";
  if (is_open && command.server.api_keys.empty() && !flags.quiet) {
    say("glimpse: anyone who reaches {} may use this server (--api-key-file)\n",
        command.server.host);
  }
  say("glimpse: listening on {}\n", server.url());
  std::fflush(stderr);
  server.run();
  return 0;
}

void add_server_flags(CLI::App& app, ServeCommand& command) {
  const std::string group = "Server";
  ServerOptions& server = command.server;
  app.add_option("--host", server.host, "address to listen on (default: 127.0.0.1)")->group(group);
  app.add_option("--port", server.port, "port; 0 picks a free one (default: 8000)")
      ->check(between(0, 65535))
      ->group(group);
  app.add_option("--api-key-file", command.api_key_file, "keys that clients must send, one a line")
      ->group(group);
  app.add_option("--tls-cert", server.tls_certificate, "PEM certificate chain")->group(group);
  app.add_option("--tls-key", server.tls_key, "its PEM key")->group(group);
  app.add_option("--cors-origin", server.cors_origins,
                 "origin whose web pages may call; may be repeated; * for any")
      ->take_all()
      ->group(group);
  app.add_option("--media-root", server.media_root,
                 "folder whose pictures requests may name as file:// URLs (default: none)")
      ->group(group);
  app.add_option("--allow-picture-host", server.picture_hosts,
                 "host whose http(s) pictures requests may name, as example.org, *.example.org or "
                 "host:port; may be repeated; private addresses only as themselves (default: none)")
      ->take_all()
      ->delimiter(',')
      ->group(group);
  app.add_option("--served-model-name", server.served_name, "the model's name in the API")
      ->group(group);
  app.add_option("--max-body", server.max_body_bytes, "largest request, as 32MiB (the default)")
      ->transform(CLI::AsSizeValue(false))
      ->group(group);
  app.add_option("--max-body-memory", server.max_body_memory,
                 "bytes of requests under way, all together; more get a 429 (default: 512MiB)")
      ->transform(CLI::AsSizeValue(false))
      ->group(group);
  app.add_option("--max-connections", server.max_connections, "open at once (default: 4096)")
      ->check(between(1, 1 << 20))
      ->group(group);
  app.add_option("--idle-unload", command.idle_unload,
                 "free the model's memory after this time without requests, as 10m")
      ->group(group);
  app.add_flag("--no-access-log", command.no_access_log, "no line per request on standard error")
      ->group(group);
  EngineOptions& engine = command.flags.engine;
  app.add_option(
         "--max-sequences", engine.max_sequences,
         fmt::format("sequences computed together (default: {}, fewer on a GPU short of memory)",
                     kDefaultSequences))
      ->check(between(1, 1024))
      ->group(group);
  app.add_option("--max-queue", engine.max_queue,
                 "requests that may wait; more get a 429 (default: 256)")
      ->check(between(1, 1 << 20))
      ->group(group);
  app.add_option("--max-model-len", command.max_model_len,
                 "vLLM's name of --context, which goes before it")
      ->check(between(int64_t{16}, int64_t{1} << 20))
      ->group(group);
  app.add_option("--gpu-memory-utilization", command.gpu_memory_utilization,
                 "vLLM's way to say --vram, which goes before it: a part of the card's memory")
      ->check(between(0.01, 1.0))
      ->group(group);
}

}  // namespace

void add_serve_command(CLI::App& program, int& result) {
  const auto command = std::make_shared<ServeCommand>();
  command->flags.sampling.max_tokens = kUnlimitedTokens;
  CLI::App* app = program.add_subcommand(
      "serve",
      "Serve OpenAI's API: /v1/chat/completions and more (docs/api.md). Sampling flags are what "
      "requests do not say; without --max-tokens an answer may fill the context. SIGTERM finishes "
      "what was accepted.");
  add_common_flags(*app, command->flags);
  add_server_flags(*app, *command);
  app->callback([command, &result] { result = run(*command); });
}

}  // namespace glimpse
