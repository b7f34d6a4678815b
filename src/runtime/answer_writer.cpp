#include "runtime/answer_writer.h"

#include <algorithm>
#include <utility>

#include "base/json.h"
#include "text/answer_grammar.h"

namespace glimpse {
namespace {

constexpr std::string_view kToolCallEnd = "</tool_call>";

std::string_view without_trailing_newlines(std::string_view text) {
  const size_t last = text.find_last_not_of('\n');
  return text.substr(0, last == std::string_view::npos ? 0 : last + 1);
}

// Null for what is no call: what a model writes need not be JSON.
Json parsed_call(std::string_view text) {
  try {
    Json call = parse_json(text, "a tool call");
    const bool is_call = call.is_object() && call.contains("name") && call["name"].is_string();
    return is_call ? call : Json();
  } catch (const Error&) {
    return {};
  }
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

bool AnswerWriter::goes_on_freely() const {
  if (num_tokens_ + 1 >= rules_.max_tokens) return false;
  if (rules_.thinking_budget < 0 || rules_.think_end < 0) return true;
  const bool may_begin_to_reason = num_tokens_ == 0;
  if (!is_reasoning_ && !may_begin_to_reason) return true;
  return num_reasoning_tokens_ + 1 < rules_.thinking_budget;
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
    write_tool_text(text);
  } else {
    buffer_ += text;
  }
}

void AnswerWriter::write_tool_text(std::string_view text) {
  tool_text_ += text;
  num_emitted_ += text.size();
  if (rules_.calls_follow_grammar) tool_calls_.push(text, tool_pieces_);
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
      write_tool_text(std::string_view(buffer_).substr(*call));
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
  event.tool_call_pieces = std::exchange(tool_pieces_, {});
  if (!event.text.empty() || !event.tokens.empty() || !event.tool_call_pieces.empty()) {
    events.push_back(std::move(event));
  }
}

void AnswerWriter::finish(FinishReason& reason, std::vector<Event>& events,
                          std::vector<ToolCall>& calls) {
  if (decoder_) write(decoder_->finish());
  if (in_tool_call_) finish_tool_calls(reason, calls);
  for (PendingToken& token : pending_) token.text_end = 0;  // the rest goes with the last event
  emit(buffer_.size(), events);
}

void AnswerWriter::finish_tool_calls(FinishReason& reason, std::vector<ToolCall>& calls) {
  const bool was_read = tool_calls_.follows_form() || !tool_calls_.calls().empty();
  if (rules_.calls_follow_grammar && was_read) {
    calls = tool_calls_.calls();
  } else {
    calls = parse_tool_calls(tool_text_);
    for (size_t i = 0; i < calls.size(); ++i) {
      tool_pieces_.push_back({.index = static_cast<int>(i),
                              .name = calls[i].name,
                              .arguments = calls[i].arguments_json});
    }
    if (calls.empty()) {
      buffer_ += tool_text_;  // not a call after all: the caller sees what was said
      num_emitted_ -= tool_text_.size();
      return;
    }
  }
  buffer_.clear();  // the newlines between text and call
  if (reason == FinishReason::stop && !calls.empty()) reason = FinishReason::tool_calls;
}

std::vector<ToolCall> parse_tool_calls(std::string_view text) {
  std::vector<ToolCall> calls;
  for (size_t begin = text.find(kToolCallBegin); begin != std::string_view::npos;
       begin = text.find(kToolCallBegin, begin)) {
    begin += kToolCallBegin.size();
    // A tag within a string of the call is no end: the end is where the call is whole.
    Json call;
    size_t end = begin;
    do {
      end = std::min(text.find(kToolCallEnd, end + 1), text.size());
      call = parsed_call(text.substr(begin, end - begin));
    } while (call.is_null() && end < text.size());
    if (call.is_null()) return {};
    const Json arguments = call.value("arguments", Json::object());
    calls.push_back({call["name"].get<std::string>(),
                     arguments.is_string() ? arguments.get<std::string>() : arguments.dump()});
    begin = end;
  }
  return calls;
}

}  // namespace glimpse
