// One client's connection: reads requests one after the other, hands each to the handler, and
// writes its answer from a bounded queue. Everything runs on the connection's strand; nothing
// blocks. While an answer is under way the socket is watched, so that a client that leaves is
// noticed at once.
#pragma once

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include <boost/asio/steady_timer.hpp>

#include "server/byte_budget.h"
#include "server/http.h"
#include "server/request_reader.h"
#include "server/transport.h"

namespace glimpse {

struct ConnectionLimits {
  RequestLimits request;
  std::shared_ptr<ByteBudget> bodies;         ///< of all connections together; null: no bound
  std::chrono::milliseconds idle{75'000};     ///< between requests
  std::chrono::milliseconds head{10'000};     ///< from a request's first byte to its head's end
  std::chrono::milliseconds body{60'000};     ///< for a whole body
  std::chrono::milliseconds write{30'000};    ///< for the client to take what is queued
  size_t max_queued_bytes = size_t{1} << 20;  ///< of a stream; a slower reader is dropped
};

/// Thread-safe where it says so. Owns itself through the handlers of its pending operations, and
/// calls `on_closed` when the last of them has ended.
class Connection : public std::enable_shared_from_this<Connection> {
 public:
  Connection(std::unique_ptr<Transport> transport, HttpHandler& handler,
             const ConnectionLimits& limits, std::function<void()> on_closed);
  void start();
  /// Closes as soon as no request is under way. Thread-safe.
  void drain();
  /// Closes now. Thread-safe.
  void abort();

 private:
  class OpenExchange;
  enum class Phase { reading, answering, lingering, closed };

  // Reading.
  void advance();
  void advance_reading();
  void judge_head();
  void count_body();
  void dispatch();
  void read_more();
  void on_read(boost::system::error_code error, size_t count);
  void linger();
  // Answering; `number` tells a late call of an earlier exchange from the present one.
  void respond(uint64_t number, HttpResponse response);
  void start_stream(uint64_t number, HttpResponse head);
  void stream(uint64_t number, const std::string& data);
  void finish_stream(uint64_t number);
  void set_on_gone(uint64_t number, std::function<void()> on_gone);
  [[nodiscard]] bool is_open(uint64_t number) const;
  void refuse(HttpResponse response);
  std::string serialized_head(const HttpResponse& response, const std::string& framing);
  // Writing.
  void enqueue(std::string bytes);
  void write_queued();
  void on_written(boost::system::error_code error);
  void end_exchange();
  // Ends.
  void set_deadline(std::chrono::milliseconds time);
  void clear_deadline();
  void close();
  void log(bool client_gone);

  // The first member is destroyed last: who is told may end the server at once.
  struct ClosedNotice {
    std::function<void()> notify;
    ~ClosedNotice() { notify(); }
  };
  ClosedNotice closed_notice_;
  std::unique_ptr<Transport> transport_;
  HttpHandler& handler_;
  ConnectionLimits limits_;
  boost::asio::steady_timer deadline_;
  std::chrono::steady_clock::time_point deadline_at_;

  Phase phase_ = Phase::reading;
  bool draining_ = false;
  bool reading_ = false;  // an operation is pending
  std::vector<char> block_;
  std::string input_;  // read, not yet taken
  std::unique_ptr<RequestReader> reader_;
  bool head_judged_ = false;
  bool keep_alive_ = true;
  BudgetShare body_share_;  // held until the answer's end: pictures live as long

  uint64_t exchange_number_ = 0;
  HttpHead head_;
  uint64_t body_bytes_ = 0;
  std::chrono::steady_clock::time_point request_started_;
  std::function<void()> on_gone_;
  bool streaming_ = false;
  bool answer_complete_ = false;  // all of it is queued
  int status_ = 0;
  uint64_t answer_bytes_ = 0;

  std::vector<std::string> queued_;
  std::vector<std::string> in_flight_;
  size_t queued_bytes_ = 0;
};

}  // namespace glimpse
