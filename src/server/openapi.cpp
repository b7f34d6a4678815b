// The OpenAPI document, kept as text beside the routes it describes; a test compares the two. What
// holds for every request - null is the same as absent - is added to the text once it is parsed.
#include "server/service.h"

#include <algorithm>
#include <string_view>

namespace glimpse {
namespace {

constexpr std::string_view kDocument = R"json({
  "openapi": "3.0.3",
  "info": {"title": "Glimpse", "version": "1", "description": "Qwen3-VL behind OpenAI's API"},
  "components": {
    "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
    "schemas": {
      "Error": {"type": "object", "required": ["error"], "properties": {"error": {
        "type": "object", "required": ["message", "type", "param", "code"], "properties": {
          "message": {"type": "string"}, "type": {"type": "string"},
          "param": {"type": "string", "nullable": true}, "code": {"type": "string"}}}}},
      "StreamEvent": {"type": "object", "required": ["data"],
        "description": "One server-sent event",
        "properties": {"data": {"type": "string",
          "description": "JSON: a piece of the answer or an error; the last is [DONE]"}}},
      "ImageUrl": {"type": "object", "required": ["url"], "additionalProperties": false,
        "properties": {
          "url": {"type": "string",
            "description": "data:, or file:// and http(s):// where allowed"},
          "detail": {"type": "string", "enum": ["low", "high", "auto"]},
          "min_pixels": {"type": "integer", "minimum": 1},
          "max_pixels": {"type": "integer", "minimum": 1}}},
      "Part": {"type": "object", "required": ["type"], "additionalProperties": false,
        "properties": {"type": {"type": "string", "enum": ["text", "image_url"]},
          "text": {"type": "string"},
          "image_url": {"$ref": "#/components/schemas/ImageUrl"}}},
      "Message": {"type": "object", "required": ["role"], "additionalProperties": false,
        "properties": {
          "role": {"type": "string", "enum": ["system", "developer", "user", "assistant", "tool"]},
          "content": {"oneOf": [{"type": "string"},
            {"type": "array", "items": {"$ref": "#/components/schemas/Part"}}]},
          "reasoning_content": {"type": "string"},
          "tool_calls": {"type": "array", "items": {"type": "object"}},
          "tool_call_id": {"type": "string"}}},
      "ChatRequest": {"type": "object", "required": ["messages"], "additionalProperties": false,
        "properties": {
          "messages": {"type": "array", "minItems": 1,
            "items": {"$ref": "#/components/schemas/Message"}},
          "model": {"type": "string"},
          "stream": {"type": "boolean"},
          "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
          "n": {"type": "integer", "minimum": 1, "maximum": 32},
          "max_tokens": {"type": "integer", "minimum": 1, "maximum": 1048576},
          "max_completion_tokens": {"type": "integer", "minimum": 1, "maximum": 1048576},
          "temperature": {"type": "number", "minimum": 0, "maximum": 100},
          "top_p": {"type": "number", "minimum": 0.000001, "maximum": 1},
          "top_k": {"type": "integer", "minimum": 0, "maximum": 1073741824},
          "min_p": {"type": "number", "minimum": 0, "maximum": 1},
          "repetition_penalty": {"type": "number", "minimum": 0.000001, "maximum": 10},
          "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
          "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
          "seed": {"type": "integer"},
          "stop": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "array", "maxItems": 64,
            "items": {"type": "string", "minLength": 1}}]},
          "logprobs": {"type": "boolean"},
          "top_logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
          "ignore_eos": {"type": "boolean"},
          "loop_guard": {"type": "boolean"},
          "thinking_budget": {"type": "integer", "minimum": 0, "maximum": 1048576},
          "add_vision_id": {"type": "boolean"},
          "chat_template_kwargs": {"type": "object"},
          "response_format": {"$ref": "#/components/schemas/ResponseFormat"},
          "tools": {"type": "array", "minItems": 1,
            "items": {"$ref": "#/components/schemas/Tool"}},
          "tool_choice": {"oneOf": [{"type": "string", "enum": ["none", "auto", "required"]},
            {"type": "object", "required": ["function"], "additionalProperties": false,
              "properties": {"type": {"type": "string", "enum": ["function"]},
                "function": {"type": "object", "required": ["name"],
                  "additionalProperties": false,
                  "properties": {"name": {"type": "string"}}}}}]},
          "parallel_tool_calls": {"type": "boolean"}}},
      "ResponseFormat": {"type": "object", "required": ["type"], "additionalProperties": false,
        "properties": {
          "type": {"type": "string", "enum": ["text", "json_object", "json_schema"]},
          "json_schema": {"type": "object", "required": ["schema"], "additionalProperties": false,
            "properties": {"name": {"type": "string"}, "description": {"type": "string"},
              "strict": {"type": "boolean"},
              "schema": {"type": "object",
                "description": "JSON Schema; docs/api.md lists the keywords"}}}}},
      "Tool": {"type": "object", "required": ["type", "function"], "additionalProperties": false,
        "properties": {"type": {"type": "string", "enum": ["function"]},
          "function": {"type": "object", "required": ["name"], "additionalProperties": false,
            "properties": {"name": {"type": "string", "minLength": 1},
              "description": {"type": "string"}, "strict": {"type": "boolean"},
              "parameters": {"type": "object"}}}}},
      "CompletionRequest": {"type": "object", "required": ["prompt"],
        "additionalProperties": false, "properties": {
          "prompt": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {}}]},
          "model": {"type": "string"},
          "stream": {"type": "boolean"},
          "stream_options": {"type": "object", "properties": {"include_usage": {"type": "boolean"}}},
          "n": {"type": "integer", "minimum": 1, "maximum": 32},
          "max_tokens": {"type": "integer", "minimum": 1, "maximum": 1048576},
          "temperature": {"type": "number", "minimum": 0, "maximum": 100},
          "top_p": {"type": "number", "minimum": 0.000001, "maximum": 1},
          "top_k": {"type": "integer", "minimum": 0, "maximum": 1073741824},
          "min_p": {"type": "number", "minimum": 0, "maximum": 1},
          "repetition_penalty": {"type": "number", "minimum": 0.000001, "maximum": 10},
          "presence_penalty": {"type": "number", "minimum": -2, "maximum": 2},
          "frequency_penalty": {"type": "number", "minimum": -2, "maximum": 2},
          "seed": {"type": "integer"},
          "stop": {"oneOf": [{"type": "string", "minLength": 1}, {"type": "array", "maxItems": 64,
            "items": {"type": "string", "minLength": 1}}]},
          "logprobs": {"type": "integer", "minimum": 0, "maximum": 20},
          "ignore_eos": {"type": "boolean"},
          "loop_guard": {"type": "boolean"}}}
    },
    "responses": {
      "Error": {"description": "OpenAI's error body",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}}
    }
  },
  "paths": {
    "/v1/chat/completions": {"post": {"operationId": "chat", "security": [{"key": []}],
      "requestBody": {"required": true, "content": {"application/json": {
        "schema": {"$ref": "#/components/schemas/ChatRequest"}}}},
      "responses": {"200": {"description": "The answer, or with stream its events",
          "content": {"application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"$ref": "#/components/schemas/StreamEvent"}}}},
        "default": {"$ref": "#/components/responses/Error"}}}},
    "/v1/completions": {"post": {"operationId": "complete", "security": [{"key": []}],
      "requestBody": {"required": true, "content": {"application/json": {
        "schema": {"$ref": "#/components/schemas/CompletionRequest"}}}},
      "responses": {"200": {"description": "The answer, or with stream its events",
          "content": {"application/json": {"schema": {"type": "object"}},
            "text/event-stream": {"schema": {"$ref": "#/components/schemas/StreamEvent"}}}},
        "default": {"$ref": "#/components/responses/Error"}}}},
    "/v1/models": {"get": {"operationId": "models", "security": [{"key": []}],
      "responses": {"200": {"description": "The served model",
          "content": {"application/json": {"schema": {"type": "object"}}}},
        "default": {"$ref": "#/components/responses/Error"}}}},
    "/v1/status": {"get": {"operationId": "status", "security": [{"key": []}],
      "responses": {"200": {"description": "The memory plan and the engine's state",
          "content": {"application/json": {"schema": {"type": "object"}}}},
        "default": {"$ref": "#/components/responses/Error"}}}},
    "/metrics": {"get": {"operationId": "metrics", "security": [{"key": []}],
      "responses": {"200": {"description": "Prometheus' text form",
          "content": {"text/plain": {"schema": {"type": "string"}}}},
        "default": {"$ref": "#/components/responses/Error"}}}},
    "/health": {"get": {"operationId": "health",
      "responses": {"200": {"description": "The server takes requests",
          "content": {"application/json": {"schema": {"type": "object"}}}},
        "default": {"$ref": "#/components/responses/Error"}}}},
    "/openapi.json": {"get": {"operationId": "openapi",
      "responses": {"200": {"description": "This document",
          "content": {"application/json": {"schema": {"type": "object"}}}}}}}
  }
})json";
void allow_null_within(Json& schema);

// A member that may be left out may be null as well, and so may one that is not known.
void allow_null(Json& schema) {
  if (schema.value("additionalProperties", Json()) == Json(false)) {
    schema["additionalProperties"] = {{"nullable", true}, {"enum", {nullptr}}};
  }
  const Json required = schema.value("required", Json::array());
  for (auto& [name, member] : schema["properties"].items()) {
    allow_null_within(member);
    if (std::find(required.begin(), required.end(), name) != required.end()) continue;
    if (member.contains("$ref")) member = {{"allOf", {member}}};  // has no place for more
    if (member.contains("enum")) member["enum"].push_back(nullptr);
    member["nullable"] = true;
  }
}

void allow_null_within(Json& schema) {
  if (schema.contains("properties")) allow_null(schema);
  if (schema.contains("items")) allow_null_within(schema["items"]);
  if (!schema.contains("oneOf")) return;
  for (Json& branch : schema["oneOf"]) allow_null_within(branch);
}

Json make_document(bool needs_key) {
  Json document = Json::parse(kDocument);
  for (auto& [name, schema] : document["components"]["schemas"].items()) {
    const bool is_answer = name == "Error" || name == "StreamEvent";
    if (!is_answer) allow_null_within(schema);
  }
  if (needs_key) return document;
  for (auto& [path, operations] : document["paths"].items()) {
    for (auto& [method, operation] : operations.items()) operation.erase("security");
  }
  return document;
}

}  // namespace

std::string openapi_document(bool needs_key) {
  return make_document(needs_key).dump();
}

}  // namespace glimpse
