#include "text/builtin_templates.h"

#include <string>

namespace glimpse {
namespace {

// Pictures and videos are counted over the whole conversation, in tool answers too.
constexpr std::string_view kParts = R"({%- set seen = namespace(pictures=0, videos=0) -%}
{%- macro text_only(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content -%}
        {%- for part in content if 'text' in part -%}
            {{- part.text -}}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro parts_of(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- elif content -%}
        {%- for part in content -%}
            {%- if part.type == 'image' or 'image' in part or 'image_url' in part -%}
                {%- set seen.pictures = seen.pictures + 1 -%}
                {%- if add_vision_id -%}{{- 'Picture ' ~ seen.pictures ~ ': ' -}}{%- endif -%}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' -}}
            {%- elif part.type == 'video' or 'video' in part -%}
                {%- set seen.videos = seen.videos + 1 -%}
                {%- if add_vision_id -%}{{- 'Video ' ~ seen.videos ~ ': ' -}}{%- endif -%}
                {{- '<|vision_start|><|video_pad|><|vision_end|>' -}}
            {%- elif 'text' in part -%}
                {{- part.text -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- macro calls_of(message, content) -%}
    {%- for entry in message.tool_calls or [] -%}
        {%- set call = entry.function or entry -%}
        {{- '\n' if content or not loop.first -}}
        {{- '<tool_call>\n{"name": "' ~ call.name ~ '", "arguments": ' -}}
        {{- call.arguments if call.arguments is string else call.arguments | tojson -}}
        {{- '}\n</tool_call>' -}}
    {%- endfor -%}
{%- endmacro -%}
)";

// The system turn, with the tools when there are any.
constexpr std::string_view kOpening =
    R"({%- set has_system = messages and messages[0].role == 'system' -%}
{%- if tools -%}
    {{- '<|im_start|>system\n' -}}
    {%- if has_system -%}{{- text_only(messages[0].content) + '\n\n' -}}{%- endif -%}
    {{- '# Tools\n\nYou may call one or more functions to assist with the user query.\n\n' -}}
    {{- 'You are provided with function signatures within <tools></tools> XML tags:\n<tools>' -}}
    {%- for tool in tools -%}{{- '\n' ~ (tool | tojson) -}}{%- endfor -%}
    {{- '\n</tools>\n\nFor each function call, return a json object with function name and arguments ' -}}
    {{- 'within <tool_call></tool_call> XML tags:\n<tool_call>\n{"name": <function-name>, ' -}}
    {{- '"arguments": <args-json-object>}\n</tool_call><|im_end|>\n' -}}
{%- elif has_system -%}
    {{- '<|im_start|>system\n' + text_only(messages[0].content) + '<|im_end|>\n' -}}
{%- endif -%}
)";

constexpr std::string_view kInstructTurns = R"({%- for message in messages -%}
    {%- if message.role == 'user' -%}
        {{- '<|im_start|>user\n' ~ parts_of(message.content) ~ '<|im_end|>\n' -}}
    {%- elif message.role == 'assistant' -%}
        {%- set content = text_only(message.content) -%}
        {{- '<|im_start|>assistant\n' ~ content ~ calls_of(message, content) ~ '<|im_end|>\n' -}}
)";

// Earlier thoughts are dropped: only answers after the user's last own words keep theirs.
constexpr std::string_view kThinkingTurns =
    R"({%- set last = namespace(query=messages | length - 1, found=false) -%}
{%- for message in messages[::-1] -%}
    {%- set words = text_only(message.content) -%}
    {%- if not last.found and message.role == 'user'
           and not (words.startswith('<tool_response>') and words.endswith('</tool_response>')) -%}
        {%- set last.found = true -%}
        {%- set last.query = loop.revindex0 -%}
    {%- endif -%}
{%- endfor -%}
{%- for message in messages -%}
    {%- if message.role == 'user' or message.role == 'system' and not loop.first -%}
        {{- '<|im_start|>' ~ message.role ~ '\n' ~ parts_of(message.content) ~ '<|im_end|>\n' -}}
    {%- elif message.role == 'assistant' -%}
        {%- set content = text_only(message.content) -%}
        {%- set thought = '' -%}
        {%- if message.reasoning_content is string -%}
            {%- set thought = message.reasoning_content -%}
        {%- elif '</think>' in content -%}
            {%- set thought = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') -%}
            {%- set content = content.split('</think>')[-1].lstrip('\n') -%}
        {%- endif -%}
        {%- if loop.index0 > last.query and (loop.last or thought) -%}
            {{- '<|im_start|>assistant\n<think>\n' ~ thought.strip('\n') ~ '\n</think>\n\n' ~ content.lstrip('\n') -}}
        {%- else -%}
            {{- '<|im_start|>assistant\n' ~ content -}}
        {%- endif -%}
        {{- calls_of(message, content) ~ '<|im_end|>\n' -}}
)";

// Answers of tools that follow one another share one turn of the user.
constexpr std::string_view kToolTurn = R"(
    {%- elif message.role == 'tool' -%}
        {{- '<|im_start|>user' if loop.first or loop.previtem.role != 'tool' -}}
        {{- '\n<tool_response>\n' ~ parts_of(message.content) ~ '\n</tool_response>' -}}
        {{- '<|im_end|>\n' if loop.last or loop.nextitem.role != 'tool' -}}
    {%- endif -%}
{%- endfor -%}
)";

}  // namespace

std::string instruct_template_source() {
  std::string source;
  for (const std::string_view part : {kParts, kOpening, kInstructTurns, kToolTurn}) source += part;
  return source +
         R"({%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n' -}}{%- endif -%})";
}

std::string thinking_template_source() {
  std::string source;
  for (const std::string_view part : {kParts, kOpening, kThinkingTurns, kToolTurn}) source += part;
  return source +
         R"({%- if add_generation_prompt -%}{{- '<|im_start|>assistant\n<think>\n' -}}{%- endif -%})";
}

}  // namespace glimpse
