// Listens, accepts, and ends in order: the I/O side of glimpse serve.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>

#include "server/engine_host.h"

namespace glimpse {

struct ServerOptions {
  std::string host = "127.0.0.1";
  uint16_t port = 8000;                   ///< 0: a free one
  std::filesystem::path tls_certificate;  ///< PEM; empty: no TLS
  std::filesystem::path tls_key;
  std::filesystem::path media_root;
  std::vector<std::string> picture_hosts;  ///< as FetchRules::hosts
  std::vector<std::string> api_keys;
  std::vector<std::string> cors_origins;
  std::string served_name;
  std::string system;
  SamplingOptions sampling;  ///< what requests do not say
  int64_t max_body_bytes = int64_t{32} << 20;
  int64_t max_body_memory = int64_t{512} << 20;  ///< of all requests under way
  int max_connections = 4096;
  std::chrono::milliseconds idle{75'000};
  std::chrono::milliseconds head{10'000};
  std::chrono::milliseconds body{60'000};
  std::chrono::milliseconds write{30'000};
  bool access_log = true;
};

/// Serves one engine. drain() and stop() may be called from any thread.
class Server {
 public:
  /// Listens at once. Throws Error when the address, a certificate or the media root cannot be
  /// used. `host` outlives the server.
  Server(EngineHost& host, const ServerOptions& options);
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  [[nodiscard]] uint16_t port() const;
  [[nodiscard]] std::string url() const;
  /// Serves until drained or stopped. SIGTERM and SIGINT drain; a second one stops.
  void run();
  /// Refuses what is new, finishes what was accepted, then run() returns.
  void drain();
  /// Drops everything.
  void stop();

 private:
  class Implementation;
  std::unique_ptr<Implementation> implementation_;
};

}  // namespace glimpse
