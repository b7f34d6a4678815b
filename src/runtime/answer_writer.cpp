#include "runtime/answer_writer.h"

#include <algorithm>

#include "base/json.h"

namespace glimpse {
namespace {

constexpr std::string_view kToolCallBegin = "<tool_call>";
constexpr std::string_view kToolCallEnd = "</tool_call>";

std::string_view without_trailing_newlines(std::string_view text) {
  const size_t last = text.find_last_not_of('\n');
  return text.substr(0, last == std::string_view::npos ? 0 : last + 1);
}

}  // namespace

AnswerWriter::AnswerWriter(AnswerRules rules)
    : rules_(std::move(rules)),
      stops_(rules_.stop),
      tool_marker_({std::string(kToolCallBegin)}),
      is_reasoning_(rules_.starts_in_reasoning),
      trims_newlines_(rules_.starts_in_reasoning) {
  if (rules_.tokenizer != nullptr) decoder_.emplace(*rules_.tokenizer);
}

TokenId AnswerWriter::forced_token() const {
  const bool over = is_reasoning_ && rules_.thinking_budget >= 0 && rules_.think_end >= 0 &&
                    num_reasoning_tokens_ >= rules_.thinking_budget;
  return over ? rules_.think_end : -1;
}

std::optional<FinishReason> AnswerWriter::push(TokenId token,
                                               std::optional<TokenLogProbs> log_probs,
                                               std::vector<Event>& events) {
  ++num_tokens_;
  const bool ends =
      std::find(rules_.eos_ids.begin(), rules_.eos_ids.end(), token) != rules_.eos_ids.end();
  pending_.push_back({token, std::move(log_probs), num_emitted_ + buffer_.size()});
  if (!switch_channel(token, events)) {
    if (is_reasoning_) ++num_reasoning_tokens_;
    if (decoder_ && !ends) write(decoder_->push(token));
    pending_.back().text_end = num_emitted_ + buffer_.size();
  }
  if (flush_safe(events) || ends) return FinishReason::stop;
  if (num_tokens_ >= rules_.max_tokens) return FinishReason::length;
  if (rules_.loop_guard && loop_guard_.push(token)) return FinishReason::loop;
  return std::nullopt;
}

// <think> and </think> are no text: they say whom the text is for.
bool AnswerWriter::switch_channel(TokenId token, std::vector<Event>& events) {
  const bool begins = !is_reasoning_ && num_tokens_ == 1 && token == rules_.think_begin;
  const bool ends = is_reasoning_ && token == rules_.think_end;
  if (!begins && !ends) return false;
  if (decoder_) write(decoder_->finish());
  if (ends) {
    const size_t length = without_trailing_newlines(buffer_).size();
    num_emitted_ += buffer_.size() - length;
    buffer_.resize(length);
    pending_.back().text_end = num_emitted_ + length;
    emit(length, events);
  }
  is_reasoning_ = begins;
  trims_newlines_ = true;
  return true;
}

void AnswerWriter::write(std::string_view text) {
  if (trims_newlines_) {
    text.remove_prefix(std::min(text.find_first_not_of('\n'), text.size()));
    trims_newlines_ = text.empty();
  }
  if (in_tool_call_) {
    tool_text_ += text;
    num_emitted_ += text.size();
  } else {
    buffer_ += text;
  }
}

// Gives out what no stop string or tool call can take back. True when a stop string was found.
bool AnswerWriter::flush_safe(std::vector<Event>& events) {
  if (is_reasoning_) {
    emit(without_trailing_newlines(buffer_).size(), events);
    return false;
  }
  if (const std::optional<size_t> stop = stops_.find(buffer_)) {
    buffer_.resize(*stop);
    decoder_.reset();  // nothing comes after it, an unfinished character neither
    return true;
  }
  size_t length = stops_.safe_length(buffer_);
  if (rules_.has_tools) {
    if (const std::optional<size_t> call = tool_marker_.find(buffer_)) {
      in_tool_call_ = true;
      tool_text_ = buffer_.substr(*call);
      num_emitted_ += tool_text_.size();
      buffer_.resize(*call);
      length = std::min(length, buffer_.size());
    } else {
      length = std::min(length, tool_marker_.safe_length(buffer_));
    }
    // The template puts a newline between text and call.
    length = without_trailing_newlines(std::string_view(buffer_).substr(0, length)).size();
  }
  emit(length, events);
  return false;
}

void AnswerWriter::emit(size_t length, std::vector<Event>& events) {
  Event event;
  event.text = buffer_.substr(0, length);
  event.is_reasoning = is_reasoning_;
  buffer_.erase(0, length);
  num_emitted_ += length;
  while (!pending_.empty() && pending_.front().text_end <= num_emitted_) {
    event.tokens.push_back(pending_.front().token);
    if (pending_.front().log_probs) {
      event.logprobs.push_back(std::move(*pending_.front().log_probs));
    }
    pending_.pop_front();
  }
  if (!event.text.empty() || !event.tokens.empty()) events.push_back(std::move(event));
}

void AnswerWriter::finish(FinishReason& reason, std::vector<Event>& events,
                          std::vector<ToolCall>& calls) {
  if (decoder_) write(decoder_->finish());
  if (in_tool_call_) {
    calls = parse_tool_calls(tool_text_);
    if (calls.empty()) {
      buffer_ += tool_text_;  // not a call after all: the caller sees what was said
      num_emitted_ -= tool_text_.size();
    } else {
      buffer_.clear();  // the newlines between text and call
      if (reason == FinishReason::stop) reason = FinishReason::tool_calls;
    }
  }
  for (PendingToken& token : pending_) token.text_end = 0;  // the rest goes with the last event
  emit(buffer_.size(), events);
}

std::vector<ToolCall> parse_tool_calls(std::string_view text) {
  std::vector<ToolCall> calls;
  for (size_t begin = text.find(kToolCallBegin); begin != std::string_view::npos;
       begin = text.find(kToolCallBegin, begin)) {
    begin += kToolCallBegin.size();
    const size_t end = std::min(text.find(kToolCallEnd, begin), text.size());
    Json call;
    try {
      call = parse_json(text.substr(begin, end - begin), "a tool call");
    } catch (const Error&) {
      return {};  // what a model writes need not be JSON
    }
    if (!call.is_object() || !call.contains("name") || !call["name"].is_string()) return {};
    const Json arguments = call.value("arguments", Json::object());
    calls.push_back({call["name"].get<std::string>(),
                     arguments.is_string() ? arguments.get<std::string>() : arguments.dump()});
  }
  return calls;
}

}  // namespace glimpse
