// Renders one template for the differential test: reads {"template", "messages", "tools", "extra",
// "add_generation_prompt", "add_vision_id"} objects, one a line, and prints {"text"} or {"error"}.
#include <iostream>
#include <string>

#include "base/json.h"
#include "text/chat_template.h"

int main() {
  using namespace glimpse;
  std::string line;
  while (std::getline(std::cin, line)) {
    Json answer = Json::object();
    try {
      const Json task = parse_json(line, "the task");
      const auto name = task.value("template", std::string());
      const ChatTemplate chat = name == "instruct"   ? ChatTemplate::instruct()
                                : name == "thinking" ? ChatTemplate::thinking()
                                                     : ChatTemplate(name);
      answer["text"] = concatenate(
          chat.render(task.value("messages", Json::array()),
                      {.add_generation_prompt = task.value("add_generation_prompt", true),
                       .add_vision_id = task.value("add_vision_id", false),
                       .tools = task.value("tools", Json()),
                       .extra = task.value("extra", Json())}));
    } catch (const Error& error) {
      answer["error"] = error.what();
    }
    std::cout << answer.dump() << "\n";
  }
}
