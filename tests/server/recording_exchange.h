// An Exchange that keeps what it is given.
#pragma once

#include <future>
#include <optional>
#include <string>
#include <vector>

#include "server/http.h"

namespace glimpse::testing {

struct Recorded {
  int heads = 0;
  std::string content_type;
  std::vector<std::string> pieces;
  std::optional<HttpResponse> response;
};

/// Keeps what it is given until the answer's end.
class RecordingExchange final : public Exchange {
 public:
  void respond(HttpResponse response) override {
    recorded_.response = std::move(response);
    done_.set_value(recorded_);
  }
  void start_stream(HttpResponse head) override {
    ++recorded_.heads;
    recorded_.content_type = head.content_type;
  }
  void stream(std::string data) override { recorded_.pieces.push_back(std::move(data)); }
  void finish_stream() override { done_.set_value(recorded_); }
  void on_gone(std::function<void()>) override {}
  [[nodiscard]] std::future<Recorded> done() { return done_.get_future(); }

 private:
  Recorded recorded_;
  std::promise<Recorded> done_;
};

}  // namespace glimpse::testing
