#include "server/server.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <set>
#include <thread>

#include <fmt/format.h>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/strand.hpp>

#include "server/connection.h"
#include "server/service.h"

namespace glimpse {
namespace {

namespace asio = boost::asio;
using asio::ip::tcp;

constexpr int kIoThreads = 2;
constexpr std::chrono::milliseconds kTick{200};

ServiceOptions service_options(const ServerOptions& options) {
  ServiceOptions service;
  service.rules.sampling = options.sampling;
  service.rules.system = options.system;
  service.rules.max_picture_bytes = static_cast<size_t>(options.max_body_bytes);
  if (!options.media_root.empty()) {
    std::error_code failed;
    service.rules.media_root = std::filesystem::canonical(options.media_root, failed);
    if (failed || !std::filesystem::is_directory(service.rules.media_root, failed)) {
      throw Error(ErrorCode::not_found,
                  fmt::format("the media root {} is no directory", options.media_root.string()),
                  "name a folder that exists with --media-root");
    }
  }
  service.fetch.hosts = options.picture_hosts;
  service.api_keys = options.api_keys;
  service.cors_origins = options.cors_origins;
  service.served_name = options.served_name;
  service.access_log = options.access_log;
  return service;
}

ConnectionLimits connection_limits(const ServerOptions& options) {
  ConnectionLimits limits;
  limits.request.max_body_bytes = static_cast<uint64_t>(options.max_body_bytes);
  limits.bodies = std::make_shared<ByteBudget>(static_cast<uint64_t>(options.max_body_memory));
  limits.idle = options.idle;
  limits.head = options.head;
  limits.body = options.body;
  limits.write = options.write;
  return limits;
}

std::unique_ptr<asio::ssl::context> tls_context(const ServerOptions& options) {
  if (options.tls_certificate.empty() && options.tls_key.empty()) return nullptr;
  auto context = std::make_unique<asio::ssl::context>(asio::ssl::context::tls_server);
  boost::system::error_code failed;
  context->set_options(asio::ssl::context::default_workarounds | asio::ssl::context::no_tlsv1 |
                       asio::ssl::context::no_tlsv1_1);
  context->use_certificate_chain_file(options.tls_certificate.string(), failed);
  if (!failed) {
    context->use_private_key_file(options.tls_key.string(), asio::ssl::context::pem, failed);
  }
  if (failed) {
    throw Error(ErrorCode::invalid_argument, fmt::format("TLS cannot start: {}", failed.message()),
                "--tls-cert and --tls-key name a PEM certificate chain and its key");
  }
  return context;
}

}  // namespace

class Server::Implementation {
 public:
  Implementation(EngineHost& host, const ServerOptions& options)
      : options_(options),
        tls_(tls_context(options)),
        limits_(connection_limits(options)),
        service_(host, service_options(options)),
        acceptor_(asio::make_strand(io_)),
        signals_(io_),
        tick_(io_) {
    service_.count_connections([this] { return num_connections_.load(); });
    listen();
  }

  ~Implementation() { service_.stop(); }

  [[nodiscard]] uint16_t port() const { return port_; }

  [[nodiscard]] std::string url() const {
    const bool is_v6 = options_.host.find(':') != std::string::npos;
    return fmt::format("{}://{}{}{}:{}", tls_ ? "https" : "http", is_v6 ? "[" : "", options_.host,
                       is_v6 ? "]" : "", port_);
  }

  void run() {
    signals_.add(SIGTERM);
    signals_.add(SIGINT);
    wait_for_signal();
    asio::post(acceptor_.get_executor(), [this] { accept(); });
    tick();
    std::vector<std::thread> threads;
    for (int i = 1; i < kIoThreads; ++i) threads.emplace_back([this] { io_.run(); });
    io_.run();
    for (std::thread& thread : threads) thread.join();
  }

  void drain() {
    service_.drain();
    draining_ = true;
    asio::post(acceptor_.get_executor(), [this] {
      boost::system::error_code ignored;
      acceptor_.close(ignored);
    });
    for_each_connection([](Connection& connection) { connection.drain(); });
  }

  // Open requests are cancelled with their connections; the tick ends run() when all are gone.
  void stop() {
    drain();
    for_each_connection([](Connection& connection) { connection.abort(); });
  }

 private:
  void listen() {
    boost::system::error_code failed;
    const auto address = asio::ip::make_address(options_.host, failed);
    const tcp::endpoint endpoint(failed ? asio::ip::address() : address, options_.port);
    if (!failed) acceptor_.open(endpoint.protocol(), failed);
    if (!failed) acceptor_.set_option(tcp::acceptor::reuse_address(true), failed);
    if (!failed) acceptor_.bind(endpoint, failed);
    if (!failed) acceptor_.listen(tcp::acceptor::max_listen_connections, failed);
    if (failed) {
      throw Error(ErrorCode::invalid_argument,
                  fmt::format("cannot listen on {} port {}: {}", options_.host, options_.port,
                              failed.message()),
                  "--host is an address of this machine; --port 0 picks a free port");
    }
    port_ = acceptor_.local_endpoint().port();
  }

  void accept() {
    acceptor_.async_accept(asio::make_strand(io_),
                           [this](boost::system::error_code error, tcp::socket socket) {
                             if (draining_ || error == asio::error::operation_aborted) return;
                             if (!error) {
                               admit(std::move(socket));
                             } else {
                               // Out of descriptors: what is open must end first.
                               std::this_thread::sleep_for(std::chrono::milliseconds(20));
                             }
                             accept();
                           });
  }

  void admit(tcp::socket socket) {
    if (num_connections_ >= options_.max_connections) return;  // closed at once
    ++num_connections_;
    auto transport =
        tls_ ? tls_transport(std::move(socket), *tls_) : plain_transport(std::move(socket));
    const auto connection = std::make_shared<Connection>(std::move(transport), service_, limits_,
                                                         [this] { --num_connections_; });
    {
      const std::lock_guard lock(mutex_);
      connections_.push_back(connection);
    }
    connection->start();
  }

  template <typename Call>
  void for_each_connection(Call call) {
    std::vector<std::shared_ptr<Connection>> open;
    {
      const std::lock_guard lock(mutex_);
      for (const auto& weak : connections_) {
        if (auto connection = weak.lock()) open.push_back(std::move(connection));
      }
    }
    for (const auto& connection : open) call(*connection);
  }

  void forget_closed() {
    const std::lock_guard lock(mutex_);
    connections_.erase(std::remove_if(connections_.begin(), connections_.end(),
                                      [](const auto& weak) { return weak.expired(); }),
                       connections_.end());
  }

  // Housekeeping, and the end of a drain: nothing open, nothing accepted that could open.
  void tick() {
    tick_.expires_after(kTick);
    tick_.async_wait([this](boost::system::error_code error) {
      if (error) return;
      forget_closed();
      service_.unload_if_idle();
      if (draining_) {
        // A connection that was being admitted when the drain began hears of it here.
        for_each_connection([](Connection& connection) { connection.drain(); });
        if (num_connections_ == 0) return io_.stop();
      }
      tick();
    });
  }

  void wait_for_signal() {
    signals_.async_wait([this](boost::system::error_code error, int) {
      if (error) return;
      if (draining_) return stop();
      drain();
      wait_for_signal();
    });
  }

  ServerOptions options_;
  std::unique_ptr<asio::ssl::context> tls_;
  ConnectionLimits limits_;
  std::atomic<int> num_connections_ = 0;
  std::atomic<bool> draining_ = false;
  std::mutex mutex_;
  std::vector<std::weak_ptr<Connection>> connections_;
  Service service_;
  asio::io_context io_;
  tcp::acceptor acceptor_;
  asio::signal_set signals_;
  asio::steady_timer tick_;
  uint16_t port_ = 0;
};

Server::Server(EngineHost& host, const ServerOptions& options)
    : implementation_(std::make_unique<Implementation>(host, options)) {}

Server::~Server() = default;

uint16_t Server::port() const {
  return implementation_->port();
}

std::string Server::url() const {
  return implementation_->url();
}

void Server::run() {
  implementation_->run();
}

void Server::drain() {
  implementation_->drain();
}

void Server::stop() {
  implementation_->stop();
}

}  // namespace glimpse
