#include "server/service.h"

#include <algorithm>
#include <array>
#include <random>

#include <fmt/format.h>
#include <spdlog/async.h>
#include <spdlog/sinks/stdout_sinks.h>
#include <boost/asio/post.hpp>

#include "server/request_error.h"

namespace glimpse {
namespace {

int64_t seconds_since_1970() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

std::string fresh_id(ApiKind kind) {
  thread_local std::mt19937_64 random{[] {
    std::random_device device;
    return uint64_t{device()} << 32U | device();
  }()};
  return fmt::format("{}-{:016x}", kind == ApiKind::chat ? "chatcmpl" : "cmpl", random());
}

bool has_json(const HttpHead& head) {
  std::string type;  // without what carries no meaning
  for (const char c : head.content_type) {
    if (c == ' ' || c == '\t' || c == '"') continue;
    type += static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  }
  const size_t charset = type.find(";charset=");
  const bool is_utf8 = charset == std::string::npos || type.substr(charset) == ";charset=utf-8";
  return type.substr(0, type.find(';')) == "application/json" && is_utf8;
}

// HEAD asks for what GET would answer, without the body, which the connection leaves out.
bool takes(std::string_view route_method, std::string_view method) {
  return method == route_method || (method == "HEAD" && route_method == "GET");
}

}  // namespace

struct Service::Route {
  std::string_view method;
  std::string_view path;
  bool needs_key;
};

// A client that does not read the log must not hold the server up: the oldest lines go.
class Service::AccessLog {
 public:
  AccessLog()
      : queue_(std::make_shared<spdlog::details::thread_pool>(8192, 1)),
        logger_(std::make_shared<spdlog::async_logger>(
            "access", std::make_shared<spdlog::sinks::stderr_sink_mt>(), queue_,
            spdlog::async_overflow_policy::overrun_oldest)) {
    logger_->set_pattern("%Y-%m-%dT%H:%M:%S.%eZ %v", spdlog::pattern_time_type::utc);
    logger_->flush_on(spdlog::level::info);
  }
  void write(const std::string& line) { logger_->info(line); }

 private:
  // Shared with spdlog's messages in flight.
  std::shared_ptr<spdlog::details::thread_pool> queue_;
  std::shared_ptr<spdlog::async_logger> logger_;
};

const Service::Route* Service::find_route(const std::string& path) {
  static constexpr std::array<Route, 7> kRoutes = {{
      {"POST", "/v1/chat/completions", true},
      {"POST", "/v1/completions", true},
      {"GET", "/v1/models", true},
      {"GET", "/v1/status", true},
      {"GET", "/metrics", true},
      {"GET", "/health", false},
      {"GET", "/openapi.json", false},
  }};
  const auto* found = std::find_if(kRoutes.begin(), kRoutes.end(),
                                   [&](const Route& route) { return route.path == path; });
  return found == kRoutes.end() ? nullptr : found;
}

Service::Service(EngineHost& host, ServiceOptions options)
    : host_(host),
      options_(std::move(options)),
      keys_(options_.api_keys),
      cors_(options_.cors_origins),
      created_(seconds_since_1970()) {
  if (options_.access_log) access_log_ = std::make_unique<AccessLog>();
  options_.rules.max_pixels = host_.model().max_pixels;
  options_.rules.fetches = !options_.fetch.hosts.empty();
  options_.fetch.max_bytes = options_.rules.max_picture_bytes;
}

Service::~Service() = default;

void Service::stop() {
  pool_.join();
  fetching_.join();
}

// ---- before the body --------------------------------------------------------------------------

std::optional<HttpResponse> Service::refuse(const HttpHead& head) {
  const Route* route = find_route(head.path);
  if (route == nullptr) {
    return error_response(RequestError(404, "there is no such route", {},
                                       "GET /openapi.json lists them", "unknown_route"));
  }
  if (head.method == "OPTIONS") return std::nullopt;
  if (!takes(route->method, head.method)) {
    HttpResponse response = error_response(
        RequestError(405, fmt::format("{} takes {} only", route->path, route->method), {}, {},
                     "method_not_allowed"));
    response.headers.emplace_back("Allow", allowed_methods(route->method));
    return response;
  }
  if (route->needs_key && !keys_.accept(head.authorization)) {
    HttpResponse response =
        error_response(RequestError(401, "the API key is missing or wrong", {},
                                    "send Authorization: Bearer and a key", "invalid_api_key"));
    response.headers.emplace_back("WWW-Authenticate", "Bearer");
    return response;
  }
  if (route->method != "POST") return std::nullopt;
  if (draining_) {
    return error_response(
        Error(ErrorCode::cancelled, "the server is shutting down", "ask another one"));
  }
  if (!has_json(head)) {
    return error_response(RequestError(415, "the body must be application/json in UTF-8", {},
                                       "send Content-Type: application/json",
                                       "unsupported_media_type"));
  }
  if (num_pending_ >= options_.max_pending) {
    return error_response(
        Error(ErrorCode::overloaded, "too many requests are waiting", "try again in a moment"));
  }
  return std::nullopt;
}

HttpResponse Service::error_response(const Error& error) {
  return error_answer(error);
}

void Service::decorate(const HttpHead& head, HttpResponse& response) {
  cors_.decorate(head.origin, response);
}

// ---- answers ----------------------------------------------------------------------------------

void Service::handle(HttpHead head, std::string body, std::shared_ptr<Exchange> exchange) {
  if (head.method == "OPTIONS") {
    return exchange->respond(preflight_answer(find_route(head.path)->method));
  }
  // Who looks at the server's state never fills the queue that bodies wait in.
  std::atomic<size_t>& waiting = head.method == "POST" ? num_pending_ : num_looking_;
  post(pool_, waiting, exchange, [this, head = std::move(head), body = std::move(body), exchange] {
    if (head.path == "/v1/chat/completions") {
      generate(ApiKind::chat, body, exchange);
    } else if (head.path == "/v1/completions") {
      generate(ApiKind::completion, body, exchange);
    } else {
      exchange->respond(answer(head.path));
    }
  });
}

void Service::post(boost::asio::thread_pool& pool, std::atomic<size_t>& waiting,
                   std::shared_ptr<Exchange> exchange, std::function<void()> work) {
  ++waiting;
  boost::asio::post(pool, [this, &waiting, exchange = std::move(exchange), work = std::move(work)] {
    --waiting;
    try {
      work();
    } catch (const Error& error) {
      exchange->respond(error_response(error));
    } catch (const std::exception& error) {
      exchange->respond(error_response(Error(ErrorCode::internal, error.what())));
    }
  });
}

void Service::generate(ApiKind kind, const std::string& body,
                       const std::shared_ptr<Exchange>& exchange) {
  ApiRequest request = kind == ApiKind::chat ? parse_chat_request(body, options_.rules)
                                             : parse_completion_request(body, options_.rules);
  const std::string name = model_name();
  if (!request.model.empty() && request.model != name) {
    throw RequestError(404, "the model that was asked for is not served here", "model",
                       fmt::format("ask for {} or leave model out", name), "model_not_found");
  }
  if (request.remote_pictures.empty()) return start(kind, std::move(request), exchange);
  post(fetching_, num_pending_, exchange,
       [this, kind, exchange, request = std::make_shared<ApiRequest>(std::move(request))] {
         fetch_pictures(*request);
         start(kind, std::move(*request), exchange);
       });
}

void Service::fetch_pictures(ApiRequest& request) const {
  for (const RemotePicture& remote : request.remote_pictures) {
    const std::vector<std::byte> bytes = fetch_picture(remote.url, remote.path, options_.fetch);
    for (Request& choice : request.requests) {
      choice.messages[remote.message].parts[remote.part].picture->bytes = bytes;
    }
  }
}

void Service::start(ApiKind kind, ApiRequest request, const std::shared_ptr<Exchange>& exchange) {
  const ApiAnswerHead answer_head{.kind = kind,
                                  .id = fresh_id(kind),
                                  .created = seconds_since_1970(),
                                  .model = model_name(),
                                  .choices_per_prompt = request.choices_per_prompt};
  const auto generation = std::make_shared<Generation>(
      host_.lease(), exchange, answer_head,
      [this](const GenerationRecord& record) { metrics_.add(record); });
  generation->start(std::move(request));
}

HttpResponse Service::answer(const std::string& path) const {
  if (path == "/v1/models") return models();
  if (path == "/v1/status") return status();
  if (path == "/metrics") return metrics();
  if (path == "/health") return health();
  return {.body = openapi_document(keys_.are_needed())};
}

std::string Service::model_name() const {
  return options_.served_name.empty() ? host_.model().name : options_.served_name;
}

HttpResponse Service::health() const {
  const std::optional<EngineStatus> status = host_.status();
  if (status && !status->healthy) {
    return error_answer(Error(ErrorCode::device, status->fault, "restart the server"));
  }
  if (draining_) {
    return error_answer(Error(ErrorCode::cancelled, "the server is shutting down"));
  }
  return {.body = to_text(
              {{"status", host_.is_loading() ? "loading" : "ok"}, {"loaded", status.has_value()}})};
}

HttpResponse Service::models() const {
  const ModelInfo model = host_.model();
  const Json entry = {{"id", model_name()},
                      {"object", "model"},
                      {"created", created_},
                      {"owned_by", "glimpse"},
                      {"max_model_len", model.context},
                      {"vision", model.image_token_id >= 0},
                      {"min_pixels", model.min_pixels},
                      {"max_pixels", model.max_pixels}};
  return {.body = to_text({{"object", "list"}, {"data", Json::array({entry})}})};
}

HttpResponse Service::metrics() const {
  return {.content_type = "text/plain; version=0.0.4",
          .body = metrics_.text(host_.status(), num_connections_ ? num_connections_() : 0)};
}

HttpResponse Service::status() const {
  const ModelInfo model = host_.model();
  const std::optional<EngineStatus> engine = host_.status();
  Json value = {{"model",
                 {{"name", model_name()},
                  {"architecture", model.architecture},
                  {"device", model.device},
                  {"arithmetic", model.arithmetic},
                  {"weight_format", model.weight_format},
                  {"parameters", model.num_parameters},
                  {"context", model.context},
                  {"max_sequences", model.max_sequences},
                  {"min_pixels", model.min_pixels},
                  {"max_pixels", model.max_pixels},
                  {"load_ms", model.load_milliseconds}}}};
  value["server"] = {
      {"uptime_seconds",
       std::chrono::duration<double>(std::chrono::steady_clock::now() - started_).count()},
      {"connections", num_connections_ ? num_connections_() : 0},
      {"draining", draining_.load()},
      {"loaded", engine.has_value()},
      {"idle_unload_seconds", std::chrono::duration<double>(host_.idle_time()).count()}};
  value["engine"] = nullptr;
  value["memory"] = Json::array();
  if (engine) {
    value["engine"] = {{"healthy", engine->healthy},
                       {"fault", engine->fault},
                       {"waiting", engine->waiting},
                       {"running", engine->running},
                       {"kv_pages", engine->kv_pages_total},
                       {"kv_pages_used", engine->kv_pages_used},
                       {"steps", engine->steps},
                       {"longest_step_ms", engine->longest_step_milliseconds},
                       {"resident_bytes", engine->resident_bytes},
                       {"peak_resident_bytes", engine->peak_resident_bytes}};
    for (const MemoryItem& item : engine->memory) {
      value["memory"].push_back({{"name", item.name}, {"bytes", item.bytes}});
    }
  }
  return {.body = to_text(value)};
}

// ---- afterwards -------------------------------------------------------------------------------

void Service::finished(const AccessRecord& record) {
  const std::string route = find_route(record.route) == nullptr ? std::string("-") : record.route;
  metrics_.add_response(route, record.status);
  if (!access_log_) return;
  access_log_->write(fmt::format(
      "id={} client={} method={} route={} status={} body_bytes={} answer_bytes={} ms={:.1f}{}",
      record.request_id.empty() ? "-" : record.request_id, record.client,
      record.method.empty() || record.method.size() > 16 ? "-" : record.method, route,
      record.status, record.body_bytes, record.answer_bytes, record.milliseconds,
      record.client_gone ? " client_gone=1" : ""));
}

void Service::unload_if_idle() {
  if (host_.idle_time().count() <= 0) return;
  boost::asio::post(pool_, [this] { host_.unload_if_idle(); });
}

}  // namespace glimpse
