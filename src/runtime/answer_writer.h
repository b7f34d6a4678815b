// One answer from tokens to events: whole characters, reasoning apart from the answer, nothing of a
// stop string or a tool call in the text, and the reasons to end.
#pragma once

#include <cstdint>
#include <deque>
#include <optional>
#include <string>
#include <vector>

#include "glimpse/request.h"
#include "runtime/loop_guard.h"
#include "runtime/stop_matcher.h"
#include "runtime/tool_call_reader.h"
#include "text/stream_decoder.h"
#include "text/tokenizer.h"

namespace glimpse {

/// What the writer must know of the request and the model.
struct AnswerRules {
  const Tokenizer* tokenizer = nullptr;  // nullptr: no text, ids only
  std::vector<std::string> stop;
  std::vector<TokenId> eos_ids;  // empty when they are ignored
  int64_t max_tokens = 0;
  bool loop_guard = true;
  bool has_tools = false;
  bool calls_follow_grammar = false;  // of text/answer_grammar.h
  bool starts_in_reasoning = false;
  TokenId think_begin = -1;  // -1: the model does not reason aloud
  TokenId think_end = -1;
  int64_t thinking_budget = -1;
};

/// Not thread-safe. The tokenizer must outlive it.
class AnswerWriter {
 public:
  explicit AnswerWriter(AnswerRules rules);

  /// Takes the next token. Events that are ready are appended to `events`. The reason to end, once
  /// there is one; finish() must follow.
  std::optional<FinishReason> push(TokenId token, std::optional<TokenLogProbs> log_probs,
                                   std::vector<Event>& events);
  /// Gives out what is held back, and the calls when the answer was one.
  void finish(FinishReason& reason, std::vector<Event>& events, std::vector<ToolCall>& calls);

  /// The token that must come next whatever the model says (the end of thinking), or -1.
  [[nodiscard]] TokenId forced_token() const;
  /// Whatever the next token is, unless it ends the answer, the model chooses the one after it too.
  [[nodiscard]] bool goes_on_freely() const;
  [[nodiscard]] bool is_reasoning() const { return is_reasoning_; }
  [[nodiscard]] int64_t num_tokens() const { return num_tokens_; }
  [[nodiscard]] int64_t num_reasoning_tokens() const { return num_reasoning_tokens_; }

 private:
  // A token whose text ends at `text_end` of everything written so far.
  struct PendingToken {
    TokenId token = 0;
    std::optional<TokenLogProbs> log_probs;
    size_t text_end = 0;
  };

  void write(std::string_view text);
  void write_tool_text(std::string_view text);
  void finish_tool_calls(FinishReason& reason, std::vector<ToolCall>& calls);
  void emit(size_t length, std::vector<Event>& events);
  bool switch_channel(TokenId token, std::vector<Event>& events);
  [[nodiscard]] bool flush_safe(std::vector<Event>& events);

  AnswerRules rules_;
  StopMatcher stops_;
  StopMatcher tool_marker_;
  std::optional<StreamDecoder> decoder_;
  LoopGuard loop_guard_;
  bool is_reasoning_ = false;
  bool trims_newlines_ = false;  // at the beginning of a channel
  bool in_tool_call_ = false;
  std::string buffer_;      // written, not yet given out
  size_t num_emitted_ = 0;  // bytes given out or dropped
  std::string tool_text_;
  ToolCallReader tool_calls_;               // where calls follow the grammar
  std::vector<ToolCallPiece> tool_pieces_;  // for the next event
  std::deque<PendingToken> pending_;
  int64_t num_tokens_ = 0;
  int64_t num_reasoning_tokens_ = 0;
};

/// The calls in "<tool_call>\n{...}\n</tool_call>" pieces; empty when one is not valid JSON of the
/// form {name, arguments}.
[[nodiscard]] std::vector<ToolCall> parse_tool_calls(std::string_view text);

}  // namespace glimpse
