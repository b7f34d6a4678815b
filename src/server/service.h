// The routes of the API: who may call them, with what, and what they answer. Work that takes time
// (parsing large bodies, loading the model) runs on a small pool, never on an I/O thread; fetching
// remote pictures, which only waits, on another.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include <boost/asio/thread_pool.hpp>

#include "server/api_keys.h"
#include "server/chat_request.h"
#include "server/cors.h"
#include "server/engine_host.h"
#include "server/http.h"
#include "server/metrics.h"
#include "server/picture_fetcher.h"

namespace glimpse {

struct ServiceOptions {
  RequestRules rules;
  std::vector<std::string> api_keys;      ///< empty: nobody is asked for one
  std::vector<std::string> cors_origins;  ///< "*" for any; empty: none
  std::string served_name;                ///< the model's name in the API; empty: the model's own
  FetchRules fetch;                       ///< of remote pictures; no hosts: none are fetched
  size_t max_pending = 512;               ///< bodies that wait for a pool
  bool access_log = true;
};

/// Thread-safe.
class Service final : public HttpHandler {
 public:
  Service(EngineHost& host, ServiceOptions options);
  ~Service() override;

  [[nodiscard]] std::optional<HttpResponse> refuse(const HttpHead& head) override;
  void handle(HttpHead head, std::string body, std::shared_ptr<Exchange> exchange) override;
  [[nodiscard]] HttpResponse error_response(const Error& error) override;
  void decorate(const HttpHead& head, HttpResponse& response) override;
  void finished(const AccessRecord& record) override;

  /// From now on new requests get a 503.
  void drain() { draining_ = true; }
  /// Waits for work that was handed to the pool.
  void stop();
  /// To be told how many connections there are, for /metrics and /v1/status.
  void count_connections(std::function<int()> count) { num_connections_ = std::move(count); }
  /// Unloads an idle engine, on the pool.
  void unload_if_idle();

 private:
  struct Route;
  static const Route* find_route(const std::string& path);

  [[nodiscard]] std::string model_name() const;
  /// Runs `work` on a pool, counted in `waiting` until then; what it throws is the answer.
  void post(boost::asio::thread_pool& pool, std::atomic<size_t>& waiting,
            std::shared_ptr<Exchange> exchange, std::function<void()> work);
  void generate(ApiKind kind, const std::string& body, const std::shared_ptr<Exchange>& exchange);
  void fetch_pictures(ApiRequest& request) const;
  void start(ApiKind kind, ApiRequest request, const std::shared_ptr<Exchange>& exchange);
  HttpResponse health() const;
  HttpResponse models() const;
  HttpResponse status() const;
  HttpResponse metrics() const;
  HttpResponse answer(const std::string& path) const;

  EngineHost& host_;
  ServiceOptions options_;
  ApiKeys keys_;
  CorsList cors_;
  Metrics metrics_;
  std::function<int()> num_connections_;
  std::chrono::steady_clock::time_point started_ = std::chrono::steady_clock::now();
  int64_t created_;  // seconds since 1970
  std::atomic<bool> draining_ = false;
  std::atomic<size_t> num_pending_ = 0;  // bodies that wait for a pool
  std::atomic<size_t> num_looking_ = 0;  // other requests that do
  class AccessLog;
  std::unique_ptr<AccessLog> access_log_;
  boost::asio::thread_pool pool_{2};
  boost::asio::thread_pool fetching_{8};
};

/// The document of /openapi.json; `needs_key` says whether the server asks for API keys.
[[nodiscard]] std::string openapi_document(bool needs_key);

}  // namespace glimpse
