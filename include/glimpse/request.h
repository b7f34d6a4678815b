#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "glimpse/error.h"
#include "glimpse/options.h"

namespace glimpse {

/// A picture file: bytes in memory, or a path that is read when the request is prepared.
struct Picture {
  std::filesystem::path path;    ///< read when `bytes` is empty
  std::vector<std::byte> bytes;  ///< a whole JPEG, PNG, WebP, GIF, BMP, TIFF, HEIC or AVIF file
  std::string name;              ///< stands in error messages; the path when empty
  int64_t min_pixels = 0;        ///< 0: the engine's
  int64_t max_pixels = 0;        ///< 0: the engine's; more than the engine's is an error
};

/// One piece of a message: text, or a picture.
struct Part {
  std::string text;
  std::optional<Picture> picture;

  static Part of_text(std::string text) { return {std::move(text), std::nullopt}; }
  static Part of_picture(Picture picture) { return {{}, std::move(picture)}; }
};

struct Message {
  std::string role;  ///< "system", "user", "assistant" or "tool"
  std::vector<Part> parts;
  std::string reasoning_content;  ///< an assistant's earlier thought, for Thinking models
  std::string tool_calls_json;    ///< an assistant's calls: JSON array in OpenAI's form; or empty
  std::string tool_call_id;       ///< of a tool message
};

/// Forces the shape of the answer.
struct ResponseFormat {
  enum class Kind { text, json_object, json_schema };
  Kind kind = Kind::text;
  std::string json_schema;  ///< the schema, for Kind::json_schema
};

enum class ToolChoice { automatic, none, required, named };

/// One question: exactly one of `messages`, `raw_prompt` and `raw_tokens` is set.
struct Request {
  std::vector<Message> messages;
  std::string raw_prompt;  ///< completed as it is, without the chat template
  /// The same as token ids; works for checkpoints without a tokenizer too (benchmarks). Each image
  /// placeholder id stands for the next of `raw_pictures` and is expanded to its visual tokens.
  std::vector<int32_t> raw_tokens;
  std::vector<Picture> raw_pictures;
  SamplingOptions sampling;
  ResponseFormat response_format;
  std::string tools_json;  ///< JSON array of tool definitions in OpenAI's form; or empty
  ToolChoice tool_choice = ToolChoice::automatic;
  std::string tool_name;            ///< for ToolChoice::named
  bool parallel_tool_calls = true;  ///< false: at most one call an answer
  bool add_vision_id = false;
  std::string template_arguments_json;  ///< object of further template variables; or empty
};

enum class FinishReason {
  stop,        ///< end of turn, or a stop string
  length,      ///< max_tokens or the context was reached
  loop,        ///< the loop guard ended a repeating tail
  tool_calls,  ///< the answer is one or more tool calls
  cancelled,
  error,
};

struct TokenLogProb {
  int32_t token = 0;
  std::string bytes;  ///< of the token; may be part of a character
  float log_prob = 0;
};

/// The chosen token and, best first, the alternatives asked for.
struct TokenLogProbs {
  TokenLogProb chosen;
  std::vector<TokenLogProb> top;
};

struct ToolCall {
  std::string name;
  std::string arguments_json;
};

/// A piece of a tool call under way. Pieces of one call have the same index, counted from 0.
struct ToolCallPiece {
  int index = 0;
  std::string name = {};  ///< with the first piece of a call
  std::string arguments = {};
};

/// What became of one picture.
struct PictureUsage {
  int original_width = 0;
  int original_height = 0;
  int resized_width = 0;
  int resized_height = 0;
  int grid_t = 0;
  int grid_h = 0;
  int grid_w = 0;
  int64_t visual_tokens = 0;
  bool from_cache = false;  ///< its embedding was still there: no vision pass
};

struct Usage {
  int64_t prompt_tokens = 0;
  int64_t cached_prompt_tokens = 0;  ///< found in the prefix cache
  int64_t completion_tokens = 0;
  int64_t reasoning_tokens = 0;
  std::vector<PictureUsage> pictures;
};

/// Milliseconds. Queueing is not counted in any but `queue` and `total`.
struct Timings {
  double queue = 0;
  double picture_decode = 0;
  double picture_resize = 0;
  double vision = 0;
  double prefill = 0;
  double decode = 0;
  double first_token = 0;  ///< from submission to the first token
  double total = 0;
};

/// A piece of an answer in flight.
struct Event {
  enum class Kind { text, finished, failed };
  Kind kind = Kind::text;
  std::string text;  ///< whole characters only
  bool is_reasoning = false;
  std::vector<TokenLogProbs> logprobs;  ///< of the tokens behind `text`
  std::vector<int32_t> tokens;          ///< ids behind `text`
  /// As they are written where the calls follow a grammar (forced or strict), else whole and last.
  std::vector<ToolCallPiece> tool_call_pieces;
  // With finished and failed:
  FinishReason finish_reason = FinishReason::stop;
  std::vector<ToolCall> tool_calls;  ///< all pieces, put together
  Usage usage;
  Timings timings;
  std::optional<Error> error;
};

/// A whole answer.
struct Answer {
  std::string text;
  std::string reasoning;
  std::vector<int32_t> tokens;  ///< the stop token included
  std::vector<TokenLogProbs> logprobs;
  std::vector<ToolCall> tool_calls;
  FinishReason finish_reason = FinishReason::stop;
  Usage usage;
  Timings timings;
};

}  // namespace glimpse
