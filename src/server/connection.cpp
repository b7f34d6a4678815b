#include "server/connection.h"

#include <fmt/format.h>
#include <boost/asio/post.hpp>

#include "server/request_error.h"

namespace glimpse {
namespace {

namespace asio = boost::asio;
using Clock = std::chrono::steady_clock;

constexpr size_t kBlockBytes = 65536;
constexpr size_t kIdleBlockBytes = 4096;
constexpr size_t kMostPipelinedBytes = 65536;
constexpr uint64_t kMostLingerBytes = uint64_t{64} << 20;
constexpr std::chrono::milliseconds kLingerTime{5000};

[[noreturn]] void refuse_body() {
  throw RequestError(429, "the server holds as many bytes of requests as it may", {},
                     "try again in a moment, or start the server with a larger --max-body-memory",
                     "overloaded");
}

}  // namespace

// Hands every call to the strand. Dropped without an answer, it answers for its owner.
class Connection::OpenExchange final : public Exchange {
 public:
  OpenExchange(std::shared_ptr<Connection> connection, uint64_t number)
      : connection_(std::move(connection)), number_(number) {}
  ~OpenExchange() override {
    if (!ended_) {
      respond(connection_->handler_.error_response(
          Error(ErrorCode::internal, "the request was lost", "this is a defect of Glimpse")));
    }
  }
  OpenExchange(const OpenExchange&) = delete;
  OpenExchange& operator=(const OpenExchange&) = delete;

  void respond(HttpResponse response) override {
    ended_ = true;
    post([response = std::move(response)](Connection& connection, uint64_t number) mutable {
      connection.respond(number, std::move(response));
    });
  }
  void start_stream(HttpResponse head) override {
    post([head = std::move(head)](Connection& connection, uint64_t number) mutable {
      connection.start_stream(number, std::move(head));
    });
  }
  void stream(std::string data) override {
    post([data = std::move(data)](Connection& connection, uint64_t number) {
      connection.stream(number, data);
    });
  }
  void finish_stream() override {
    ended_ = true;
    post([](Connection& connection, uint64_t number) { connection.finish_stream(number); });
  }
  void on_gone(std::function<void()> on_gone) override {
    post([on_gone = std::move(on_gone)](Connection& connection, uint64_t number) mutable {
      connection.set_on_gone(number, std::move(on_gone));
    });
  }

 private:
  template <typename Call>
  void post(Call call) {
    asio::post(connection_->transport_->executor(),
               [connection = connection_, number = number_, call = std::move(call)]() mutable {
                 call(*connection, number);
               });
  }

  // Shared with the handlers of the connection's operations.
  std::shared_ptr<Connection> connection_;
  uint64_t number_;
  std::atomic<bool> ended_ = false;
};

Connection::Connection(std::unique_ptr<Transport> transport, HttpHandler& handler,
                       const ConnectionLimits& limits, std::function<void()> on_closed)
    : closed_notice_{std::move(on_closed)},
      transport_(std::move(transport)),
      handler_(handler),
      limits_(limits),
      deadline_(transport_->executor()),
      reader_(std::make_unique<RequestReader>(limits.request)),
      body_share_(limits.bodies) {}

void Connection::start() {
  asio::post(transport_->executor(), [self = shared_from_this()] {
    self->set_deadline(self->limits_.head);
    self->transport_->handshake([self](boost::system::error_code error) {
      if (error) return self->close();
      self->set_deadline(self->limits_.idle);
      self->advance();
    });
  });
}

void Connection::drain() {
  asio::post(transport_->executor(), [self = shared_from_this()] {
    self->draining_ = true;
    self->keep_alive_ = false;
    const bool is_idle =
        self->phase_ == Phase::reading && self->input_.empty() && !self->head_judged_;
    if (is_idle) self->close();
  });
}

void Connection::abort() {
  asio::post(transport_->executor(), [self = shared_from_this()] { self->close(); });
}

// ---- reading ----------------------------------------------------------------------------------

// Goes as far as the bytes read so far allow.
void Connection::advance() {
  if (phase_ != Phase::reading) return;
  try {
    advance_reading();
  } catch (const RequestError& error) {
    keep_alive_ = false;
    refuse(handler_.error_response(error));
  }
}

void Connection::advance_reading() {
  while (phase_ == Phase::reading) {
    const size_t used = reader_->take(input_);
    input_.erase(0, used);
    if (reader_->has_head() && !head_judged_) {
      judge_head();
      continue;
    }
    count_body();
    if (head_judged_ && reader_->is_complete()) return dispatch();
    if (used == 0 || input_.empty()) return read_more();
  }
}

// The length that a head tells is only compared: a client that sends nothing holds nothing.
void Connection::count_body() {
  if (!body_share_.grow_to(reader_->body_bytes())) refuse_body();
}

void Connection::judge_head() {
  head_judged_ = true;
  head_ = reader_->head();
  if (!head_.keep_alive || draining_) keep_alive_ = false;
  if (std::optional<HttpResponse> refusal = handler_.refuse(head_)) {
    // What follows of the body is of no interest; without one the connection stays usable.
    if (head_.has_body) keep_alive_ = false;
    return refuse(std::move(*refusal));
  }
  if (!head_.has_body) return;
  if (limits_.bodies && !limits_.bodies->has_room(head_.content_length)) refuse_body();
  set_deadline(limits_.body);
  if (head_.expects_continue) enqueue("HTTP/1.1 100 Continue\r\n\r\n");
}

void Connection::dispatch() {
  clear_deadline();
  phase_ = Phase::answering;
  ++exchange_number_;
  std::string body = reader_->take_body();
  body_bytes_ = body.size();
  auto exchange = std::make_shared<OpenExchange>(shared_from_this(), exchange_number_);
  read_more();  // watches for the client's leaving
  handler_.handle(head_, std::move(body), std::move(exchange));
}

void Connection::read_more() {
  if (reading_ || phase_ == Phase::closed) return;
  if (phase_ == Phase::answering && input_.size() >= kMostPipelinedBytes) return;
  reading_ = true;
  // A thousand idle connections keep small blocks.
  const bool is_idle = phase_ != Phase::lingering && input_.empty() && !head_judged_;
  const size_t size = is_idle || phase_ == Phase::answering ? kIdleBlockBytes : kBlockBytes;
  if (block_.size() != size) block_ = std::vector<char>(size);
  transport_->read_some(asio::buffer(block_),
                        [self = shared_from_this()](boost::system::error_code error, size_t count) {
                          self->on_read(error, count);
                        });
}

void Connection::on_read(boost::system::error_code error, size_t count) {
  reading_ = false;
  if (phase_ == Phase::closed) return;
  if (error) return close();
  if (phase_ == Phase::lingering) {
    body_bytes_ += count;
    return body_bytes_ > kMostLingerBytes ? close() : read_more();
  }
  if (phase_ == Phase::reading && input_.empty() && !head_judged_) {
    request_started_ = Clock::now();
    set_deadline(limits_.head);
  }
  input_.append(block_.data(), count);
  if (phase_ == Phase::answering) return read_more();
  advance();
}

// A client that is still sending a refused body would lose the answer if the socket just closed.
void Connection::linger() {
  phase_ = Phase::lingering;
  body_bytes_ = 0;
  std::string().swap(input_);
  reader_ = std::make_unique<RequestReader>(limits_.request);  // and with it half a body
  set_deadline(kLingerTime);
  transport_->finish_sending([self = shared_from_this()](boost::system::error_code error) {
    if (error) self->close();
  });
  read_more();
}

// ---- answering --------------------------------------------------------------------------------

bool Connection::is_open(uint64_t number) const {
  return phase_ == Phase::answering && number == exchange_number_ && !answer_complete_;
}

void Connection::refuse(HttpResponse response) {
  phase_ = Phase::answering;
  ++exchange_number_;
  respond(exchange_number_, std::move(response));
}

void Connection::respond(uint64_t number, HttpResponse response) {
  if (!is_open(number) || streaming_) return;
  answer_complete_ = true;
  handler_.decorate(head_, response);
  const bool has_length = response.status != 204;
  std::string bytes = serialized_head(
      response,
      has_length ? fmt::format("Content-Length: {}\r\n", response.body.size()) : std::string());
  enqueue(head_.method == "HEAD" ? bytes : bytes + response.body);
}

void Connection::start_stream(uint64_t number, HttpResponse head) {
  if (!is_open(number) || streaming_) return;
  streaming_ = true;
  // HTTP/1.0 knows no chunks: the end of the connection ends the answer.
  if (!head_.can_stream) keep_alive_ = false;
  handler_.decorate(head_, head);
  enqueue(serialized_head(head, head_.can_stream ? "Transfer-Encoding: chunked\r\n" : ""));
}

void Connection::stream(uint64_t number, const std::string& data) {
  if (!is_open(number) || !streaming_ || data.empty()) return;
  if (queued_bytes_ + data.size() > limits_.max_queued_bytes) return close();
  enqueue(head_.can_stream ? fmt::format("{:x}\r\n{}\r\n", data.size(), data) : data);
}

void Connection::finish_stream(uint64_t number) {
  if (!is_open(number) || !streaming_) return;
  answer_complete_ = true;
  enqueue(head_.can_stream ? "0\r\n\r\n" : "");
}

void Connection::set_on_gone(uint64_t number, std::function<void()> on_gone) {
  if (is_open(number)) {
    on_gone_ = std::move(on_gone);
  } else if (phase_ == Phase::closed && number == exchange_number_ && !answer_complete_) {
    on_gone();  // it left before anyone asked
  }
}

std::string Connection::serialized_head(const HttpResponse& response, const std::string& framing) {
  status_ = response.status;
  std::string text =
      fmt::format("HTTP/1.1 {} {}\r\n{}", response.status, reason_phrase(response.status), framing);
  if (!response.content_type.empty()) {
    text += fmt::format("Content-Type: {}\r\n", response.content_type);
  }
  for (const auto& [name, value] : response.headers) text += fmt::format("{}: {}\r\n", name, value);
  if (!head_.request_id.empty()) text += fmt::format("X-Request-Id: {}\r\n", head_.request_id);
  return text + (keep_alive_ ? "Connection: keep-alive\r\n\r\n" : "Connection: close\r\n\r\n");
}

// ---- writing ----------------------------------------------------------------------------------

void Connection::enqueue(std::string bytes) {
  answer_bytes_ += bytes.size();
  queued_bytes_ += bytes.size();
  queued_.push_back(std::move(bytes));
  if (in_flight_.empty()) write_queued();
}

void Connection::write_queued() {
  in_flight_.swap(queued_);
  std::vector<asio::const_buffer> buffers;
  for (const std::string& bytes : in_flight_) buffers.push_back(asio::buffer(bytes));
  if (phase_ == Phase::answering) set_deadline(limits_.write);
  transport_->write(buffers, [self = shared_from_this()](boost::system::error_code error, size_t) {
    self->on_written(error);
  });
}

void Connection::on_written(boost::system::error_code error) {
  if (phase_ == Phase::closed) return;
  if (error) return close();
  for (const std::string& bytes : in_flight_) queued_bytes_ -= bytes.size();
  in_flight_.clear();
  if (!queued_.empty()) return write_queued();
  if (phase_ != Phase::answering) return;  // only "100 Continue" went out
  clear_deadline();
  if (answer_complete_) end_exchange();
}

void Connection::end_exchange() {
  log(false);
  on_gone_ = nullptr;
  body_share_.give_back();
  if (!keep_alive_ || draining_) return linger();
  phase_ = Phase::reading;
  head_ = HttpHead();
  reader_ = std::make_unique<RequestReader>(limits_.request);
  head_judged_ = streaming_ = answer_complete_ = false;
  answer_bytes_ = body_bytes_ = 0;
  request_started_ = Clock::now();
  set_deadline(input_.empty() ? limits_.idle : limits_.head);
  advance();
}

// ---- ends -------------------------------------------------------------------------------------

void Connection::set_deadline(std::chrono::milliseconds time) {
  deadline_at_ = Clock::now() + time;
  deadline_.expires_at(deadline_at_);
  deadline_.async_wait([weak = weak_from_this()](boost::system::error_code error) {
    const std::shared_ptr<Connection> self = weak.lock();
    if (error || !self || self->phase_ == Phase::closed) return;
    // A handler that was already queued when the deadline moved.
    if (Clock::now() < self->deadline_at_) return;
    self->close();
  });
}

void Connection::clear_deadline() {
  deadline_at_ = Clock::time_point::max();
  deadline_.cancel();
}

void Connection::close() {
  if (phase_ == Phase::closed) return;
  if (phase_ == Phase::answering) log(true);
  phase_ = Phase::closed;
  deadline_.cancel();
  transport_->close();
  if (const std::function<void()> gone = std::exchange(on_gone_, nullptr)) gone();
}

void Connection::log(bool client_gone) {
  handler_.finished(
      {.request_id = head_.request_id,
       .method = head_.method,
       .route = head_.path,
       .client = transport_->client(),
       .status = status_,
       .client_gone = client_gone,
       .body_bytes = body_bytes_,
       .answer_bytes = answer_bytes_,
       .milliseconds =
           std::chrono::duration<double, std::milli>(Clock::now() - request_started_).count()});
}

}  // namespace glimpse
